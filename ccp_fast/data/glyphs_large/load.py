"""Reading ``glyphs-large``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ccp_fast.data.glyphs import unpacked
from ccp_fast.data.image_set import ImageSet
from ccp_fast.data.packed import DataFileError, PackedImages, read_packed

FILE_NAME = "glyphs_large.bin"


def read(folder: Path) -> PackedImages:
    """The content of the set in a folder. DataFileError if it is not there, or damaged."""
    path, command = folder / FILE_NAME, f"ccp-data build glyphs-large --out {folder}"
    if not path.exists():
        raise DataFileError(f"{path} does not exist; make it with: {command}")
    return read_packed(path, f"delete it and make it again with: {command}")


def glyphs_large(root: Path | str, split: Literal["train", "test", "all"] = "train") -> ImageSet:
    """Chinese characters in 20 typefaces, 5 to 8 images of each, from where ``ccp-data build`` put them.

    ``train`` is the first half of the classes and ``test`` the rest, as in SOP; they lie in the order of a hash of
    their character. Images are ``[1, 32, 32]``, white ink on black.

    Raises ``DataFileError`` if the set is not there or damaged, ``ValueError`` for an unknown split.
    """
    if split not in ("train", "test", "all"):
        raise ValueError(f"split: expected 'train', 'test' or 'all', got {split!r}")
    data = read(Path(root))
    half, total = (len(data.class_names) + 1) // 2, len(data.class_names)
    parts = {"train": range(half), "test": range(half, total), "all": range(total)}
    return unpacked(data, parts[split])
