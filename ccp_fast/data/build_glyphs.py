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
import subprocess
from pathlib import Path

import numpy as np

from ccp_fast.data.drawing import Face, draw_all, drawn_with, rank, write_notices
from ccp_fast.data.packed import PackedImages, packed

NUM_CLASSES = 1500
PER_CLASS = 8

FONTS = Path("/usr/share/fonts/truetype")
DOCS = Path("/usr/share/doc")

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


def choose_faces(character: str) -> list[int]:
    """Positions in ``FACES`` of the character's samples."""
    return sorted(range(len(FACES)), key=lambda face: rank(character, FACES[face].name))[:PER_CLASS]


def build() -> PackedImages:
    """Draw every face and choose classes and samples."""
    characters = candidates()
    drawn = []
    for face in FACES:
        drawn.append(draw_all(face.open(FONTS), characters))
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
        sizes=np.full(NUM_CLASSES, PER_CLASS),
        source_ids=np.array(chosen, dtype=np.uint8).ravel(),
        images=np.stack([drawn[f][c] for c, faces in zip(classes, chosen, strict=True) for f in faces]),
    )


def write_licenses(directory: Path) -> None:
    """The notices of the packages, and what of them is here."""
    packages = sorted({face.package for face in FACES})
    query = ["dpkg-query", "--show", "--showformat=${Package}/${Version}\\n", *packages]
    shown = subprocess.run(query, check=True, capture_output=True, text=True).stdout.splitlines()
    versions = dict(line.split("/", 1) for line in shown)
    write_notices(directory, FACES, DOCS, versions, README.format(drawn_with=drawn_with()))


README = """\
# Typefaces of the glyph set

`glyphs.bin` holds images of characters drawn with the typefaces below, taken from Debian 12, with
{drawn_with}. No font file is part of this package.
Each notice is the copyright file of its Debian package, unchanged; what it says about `debian/*` concerns
Debian's packaging, of which nothing is used here. Thanks to those who drew these faces and gave them away.

Written by `python -m ccp_fast.data.build_glyphs`; do not edit by hand.
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
    (out / "glyphs.bin").write_bytes(packed(data))
    write_licenses(out / "glyphs_licenses")
    print(f"wrote {out / 'glyphs.bin'}: {(out / 'glyphs.bin').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
