"""``glyphs``: Chinese characters in different typefaces, a real data set small enough to ship in the package.

A class is a character, its samples are typefaces: handwriting, brush and display faces, drawn at 32x32 in 16
grays. Test classes are characters never seen in training. On them, nearest neighbours of raw pixels (cosine)
reach R@1 54.1 and MAP@R 19.9 (percent). How the set was made: ``build_glyphs.py``; whose typefaces they are:
``glyphs_licenses/README.md``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from ccp_fast.data.image_set import ImageSet
from ccp_fast.data.packed import PackedImages, read_packed

Split = Literal["train", "val", "test", "trainval", "all"]

FILE = Path(__file__).with_name("glyphs.bin")

# Classes lie in the file in the order of a hash of their character, which says nothing about it: the split is
# simply by position.
_CLASSES: dict[str, range] = {
    "train": range(0, 800),
    "val": range(800, 1000),
    "test": range(1000, 1500),
    "trainval": range(0, 1000),
    "all": range(0, 1500),
}
_GRAY_STEP = 17  # 4-bit gray 0..15 to 0..255


@lru_cache(maxsize=2)
def _packed(path: Path) -> PackedImages:
    return read_packed(path, "reinstall ccp_fast, or restore the file from the repository")


def glyphs(split: Split = "train") -> ImageSet:
    """Chinese characters in different typefaces: class = character, samples = typefaces.

    Splits are disjoint in classes: ``train`` 800, ``val`` 200, ``test`` 500; ``trainval`` is the first two,
    ``all`` the three, in this order. A class has 8 images ``[1, 32, 32]``, white ink on black, each from
    another typeface; they follow one another. ``labels`` count from 0 within the split. Tensors are new at
    every call.

    Raises ``ValueError`` for an unknown split and ``DataFileError`` if the file in the package is missing,
    cut or damaged.
    """
    if split not in _CLASSES:
        raise ValueError(f"split: expected one of {', '.join(map(repr, _CLASSES))}, got {split!r}")
    return unpacked(_packed(FILE), _CLASSES[split])


def unpacked(data: PackedImages, classes: range) -> ImageSet:
    """Consecutive classes of a file, numbered from 0, as new tensors."""
    chosen = slice(classes.start, classes.stop)
    ends = data.sizes.cumsum()
    rows = slice(int(ends[classes.start] - data.sizes[classes.start]), int(ends[classes.stop - 1]))
    return ImageSet(
        images=(torch.from_numpy(data.images[rows]) * _GRAY_STEP).unsqueeze(1),
        labels=torch.arange(len(classes)).repeat_interleave(torch.from_numpy(data.sizes[chosen])),
        class_names=data.class_names[chosen],
        sources=data.sources,
        source_ids=torch.from_numpy(data.source_ids[rows].astype("int64")),
    )
