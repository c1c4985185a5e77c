"""Typefaces, what they really draw, and the notices that stay beside images of them."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFont, features

SIZE = 32  # side of an image, pixels
INK = 28  # longest side of the ink, pixels
OVERSAMPLING = 4  # drawn this many times larger, then averaged: no hinting, no bitmaps embedded in a face
PLACEHOLDER_COUNT = 3

Glyph = npt.NDArray[np.uint8]  # [SIZE, SIZE], 0..15


@dataclass(frozen=True)
class Face:
    """A typeface and where it comes from."""

    name: str  # in the data set
    file: str  # below the folder of fonts
    package: str  # of Debian
    licence: str  # SPDX identifier, or "public domain"
    index: int = 0  # within a font collection

    @property
    def notice(self) -> str:
        """Name of the licence notice kept beside the data: the package's copyright file."""
        return f"{self.package}.txt"

    def open(self, fonts: Path) -> ImageFont.FreeTypeFont:
        """The font, in the size that `draw` wants. OSError if it is missing or none."""
        return ImageFont.truetype(
            fonts / self.file,
            INK * OVERSAMPLING,
            index=self.index,
            layout_engine=ImageFont.Layout.BASIC,
        )


def draw(font: ImageFont.FreeTypeFont, character: str) -> Glyph | None:
    """The character with its ink centred and its longer side scaled to ``INK``; None if there is no ink."""
    mask = font.getmask(character, mode="L")
    ink_box = mask.getbbox()
    if ink_box is None:
        return None
    large = Image.frombytes("L", mask.size, bytes(mask)).crop(ink_box)
    scale = INK * OVERSAMPLING / max(large.size)
    width, height = (max(1, round(side * scale)) for side in large.size)
    side = SIZE * OVERSAMPLING
    canvas = Image.new("L", (side, side))
    canvas.paste(
        large.resize((width, height), Image.Resampling.BOX), ((side - width) // 2, (side - height) // 2)
    )
    gray = np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.uint16)
    glyph = ((gray * 15 + 127) // 255).astype(np.uint8)
    return glyph if glyph.any() else None


def draw_all(font: ImageFont.FreeTypeFont, characters: Iterable[str]) -> dict[str, Glyph]:
    """What the font really draws: neither blanks nor placeholders."""
    return without_placeholders({c: glyph for c in characters if (glyph := draw(font, c)) is not None})


def without_placeholders(drawn: Mapping[str, Glyph]) -> dict[str, Glyph]:
    """What a face draws, without images that occur three times or more in it."""
    seen = Counter(glyph.tobytes() for glyph in drawn.values())
    return {c: glyph for c, glyph in drawn.items() if seen[glyph.tobytes()] < PLACEHOLDER_COUNT}


def rank(*key: str) -> bytes:
    """A fixed order without meaning: the same on every machine and for any set of other keys."""
    return hashlib.sha256("/".join(key).encode()).digest()


def drawn_with() -> str:
    """The versions that images depend on beside those of the fonts."""
    return f"Pillow {features.version('pil')} and FreeType {features.version('freetype2')}"


def write_notices(
    directory: Path, faces: Sequence[Face], docs: Path, versions: Mapping[str, str], introduction: str
) -> None:
    """Copy each package's notice from `docs` into ``directory`` and write the table of faces."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for face in faces:
        shutil.copyfile(docs / face.package / "copyright", directory / face.notice)
        rows.append(
            f"| {face.name} | `{Path(face.file).name}` | {face.package} | {versions[face.package]} "
            f"| {face.licence} | [{face.notice}]({face.notice}) |"
        )
    table = "| face | file | Debian package | version | licence | notice |\n|---|---|---|---|---|---|\n"
    text = introduction + "\n" + table + "\n".join(rows) + "\n"
    (directory / "README.md").write_text(text, encoding="utf-8")
