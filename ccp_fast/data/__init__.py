"""Data sets: images with labels, needing nothing but torch and numpy."""

from __future__ import annotations

from ccp_fast.data.glyphs import glyphs
from ccp_fast.data.image_set import ImageSet
from ccp_fast.data.packed import DataFileError
from ccp_fast.data.source import ImageSource
from ccp_fast.data.splits import EvaluationSet, Splits

__all__ = ["DataFileError", "EvaluationSet", "ImageSet", "ImageSource", "Splits", "glyphs"]
