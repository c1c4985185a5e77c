"""Data sets: images in memory with labels, needing nothing but torch and numpy."""

from __future__ import annotations

from ccp_fast.data.glyphs import glyphs
from ccp_fast.data.image_set import ImageSet
from ccp_fast.data.packed import DataFileError

__all__ = ["DataFileError", "ImageSet", "glyphs"]
