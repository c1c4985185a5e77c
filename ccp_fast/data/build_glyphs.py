"""Draws ``glyphs.bin`` from Debian's font packages.

    python -m ccp_fast.data.build_glyphs --out ccp_fast/data

Needed only by whoever rebuilds the set, on Debian 12 with Pillow; it says which packages to install. Everyone
else reads the file. The faces are handwriting, brush and display faces, because plain text faces look too
much alike; all are in the public domain or under BSD, MIT or OFL. The same fonts, Pillow and FreeType give
the same file.

1. Every kanji of JIS X 0208 is drawn in every face. What a face's cmap claims is not believed: a blank image
   means "not drawn", and so does an image that occurs three times or more within the face (a placeholder).
2. The classes are the 1,500 characters with the lowest hash among those that all faces draw.
3. The samples of a class are the 8 faces with the lowest hash of (character, face): another choice per class.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFont, features

from ccp_fast.data.packed import PackedImages, write_packed

NUM_CLASSES = 1500
PER_CLASS = 8
SIZE = 32  # side of an image, pixels
INK = 28  # longest side of the ink, pixels
OVERSAMPLING = 4  # drawn this many times larger, then averaged: no hinting, no bitmaps embedded in a face
PLACEHOLDER_COUNT = 3

FONTS = Path("/usr/share/fonts/truetype")
DOCS = Path("/usr/share/doc")

Glyph = npt.NDArray[np.uint8]  # [SIZE, SIZE], 0..15


@dataclass(frozen=True)
class Face:
    """A typeface and where it comes from."""

    name: str  # in the data set
    file: str  # below FONTS
    package: str  # of Debian
    licence: str  # SPDX identifier, or "public domain"

    @property
    def notice(self) -> str:
        """Name of the licence notice kept beside the data: the package's copyright file."""
        return f"{self.package}.txt"


FACES = (
    Face("aoyagi-kouzan-t", "aoyagi-kouzan-t/AoyagiKouzanT.ttf", "fonts-aoyagi-kouzan-t", "public domain"),
    Face("aoyagi-soseki", "aoyagi-soseki/aoyagi-soseki.ttf", "fonts-aoyagi-soseki", "public domain"),
    Face("kouzan-kaisho", "kouzan-mouhitsu/kouzan-mouhitsu.ttf", "fonts-kouzan-mouhitsu", "public domain"),
    Face(
        "kouzan-gyosho",
        "kouzan-mouhitsu/kouzan-mouhitsu-gyosho.ttf",
        "fonts-kouzan-mouhitsu",
        "public domain",
    ),
    Face(
        "kouzan-sosho", "kouzan-mouhitsu/KouzanBrushFontSousyo.ttf", "fonts-kouzan-mouhitsu", "public domain"
    ),
    Face("dejima-mincho", "dejima-mincho/dejima-mincho-r227.ttf", "fonts-dejima-mincho", "MIT"),
    Face("dotgothic16", "dotgothic16/DotGothic16-Regular.ttf", "fonts-dotgothic16", "OFL-1.1"),
    Face("kiloji", "kiloji/kiloji.ttf", "fonts-kiloji", "BSD-3-Clause"),
    Face("konatu", "konatu/Konatu.ttf", "fonts-konatu", "MIT"),
    Face("rampart-one", "rampart/RampartOne-Regular.ttf", "fonts-rampart", "OFL-1.1"),
    Face("reggae-one", "reggae/ReggaeOne-Regular.ttf", "fonts-reggae", "OFL-1.1"),
    Face("rocknroll-one", "rocknroll/RocknRollOne-Regular.ttf", "fonts-rocknroll", "OFL-1.1"),
    Face("seto", "seto/setofont.ttf", "fonts-seto", "OFL-1.1"),
    Face("smiley-sans", "smiley-sans/SmileySans-Oblique.ttf", "fonts-smiley-sans", "OFL-1.1"),
    Face("stick", "stick/Stick-Regular.ttf", "fonts-stick", "OFL-1.1"),
    Face("yozfont", "yozvox-yozfont/YOzRS_.ttf", "fonts-yozvox-yozfont-standard-kana", "OFL-1.1"),
    Face("yusei-magic", "yusei-magic/YuseiMagic-Regular.ttf", "fonts-yusei-magic", "OFL-1.1"),
)


def candidates() -> list[str]:
    """The 6,355 kanji of JIS X 0208, levels 1 and 2 (rows 16 to 84), in the order of the standard."""
    found = []
    for row in range(0xB0, 0xF5):
        for cell in range(0xA1, 0xFF):
            try:
                found.append(bytes([row, cell]).decode("euc_jp"))
            except UnicodeDecodeError:  # cells the standard leaves empty
                continue
    return found


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


def draw_all(font: ImageFont.FreeTypeFont, characters: list[str]) -> dict[str, Glyph]:
    """What the font really draws: neither blanks nor placeholders."""
    drawn = {c: glyph for c in characters if (glyph := draw(font, c)) is not None}
    seen = Counter(glyph.tobytes() for glyph in drawn.values())
    return {c: glyph for c, glyph in drawn.items() if seen[glyph.tobytes()] < PLACEHOLDER_COUNT}


def rank(*key: str) -> bytes:
    """A fixed order without meaning: the same on every machine and for any set of other keys."""
    return hashlib.sha256("/".join(key).encode()).digest()


def choose_faces(character: str) -> list[int]:
    """Positions in ``FACES`` of the character's samples."""
    return sorted(range(len(FACES)), key=lambda face: rank(character, FACES[face].name))[:PER_CLASS]


def build() -> PackedImages:
    """Draw every face and choose classes and samples."""
    characters = candidates()
    drawn = []
    for face in FACES:
        path = FONTS / face.file
        font = ImageFont.truetype(path, INK * OVERSAMPLING, layout_engine=ImageFont.Layout.BASIC)
        drawn.append(draw_all(font, characters))
        print(f"{face.name}: draws {len(drawn[-1])} of {len(characters)}", flush=True)
    everywhere = [c for c in characters if all(c in glyphs for glyphs in drawn)]
    print(f"drawn by all {len(FACES)} faces: {len(everywhere)}")
    if len(everywhere) < NUM_CLASSES:
        raise SystemExit(
            f"expected at least {NUM_CLASSES} characters drawn by all faces, got {len(everywhere)}"
        )
    classes = sorted(everywhere, key=rank)[:NUM_CLASSES]
    chosen = [choose_faces(c) for c in classes]
    return PackedImages(
        class_names=tuple(classes),
        sources=tuple(face.name for face in FACES),
        source_ids=np.array(chosen, dtype=np.uint8),
        images=np.stack([[drawn[f][c] for f in faces] for c, faces in zip(classes, chosen, strict=True)]),
    )


def write_licenses(directory: Path) -> None:
    """Copy each package's notice into ``directory`` and write the table of faces."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = []
    for face in FACES:
        shutil.copyfile(DOCS / face.package / "copyright", directory / face.notice)
        version = subprocess.run(
            ["dpkg-query", "--show", "--showformat=${Version}", face.package],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        rows.append(
            f"| {face.name} | `{Path(face.file).name}` | {face.package} | {version} | {face.licence} "
            f"| [{face.notice}]({face.notice}) |"
        )
    drawn_with = f"Pillow {features.version('pil')} and FreeType {features.version('freetype2')}"
    (directory / "README.md").write_text(
        README.format(rows="\n".join(rows), drawn_with=drawn_with), encoding="utf-8"
    )


README = """\
# Typefaces of the glyph set

`glyphs.bin` holds images of characters drawn with the typefaces below, taken from Debian 12, with
{drawn_with}. No font file is part of this package.
Each notice is the copyright file of its Debian package, unchanged; what it says about `debian/*` concerns
Debian's packaging, of which nothing is used here. Thanks to those who drew these faces and gave them away.

Written by `python -m ccp_fast.data.build_glyphs`; do not edit by hand.

| face | file | Debian package | version | licence | notice |
|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ccp_fast.data.build_glyphs",
        description="Draws the glyph set from Debian's font packages.",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="folder to write glyphs.bin and glyphs_licenses/ to"
    )
    out: Path = parser.parse_args().out
    missing = sorted({face.package for face in FACES if not (FONTS / face.file).is_file()})
    if missing:
        raise SystemExit(f"fonts are missing; install them with: apt-get install {' '.join(missing)}")
    data = build()
    out.mkdir(parents=True, exist_ok=True)
    write_packed(out / "glyphs.bin", data)
    write_licenses(out / "glyphs_licenses")
    print(f"wrote {out / 'glyphs.bin'}: {(out / 'glyphs.bin').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
