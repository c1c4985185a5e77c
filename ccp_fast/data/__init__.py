"""Data sets: images with labels, needing nothing but torch and numpy, and Pillow for image files."""

from __future__ import annotations

from ccp_fast.data.cars import cars
from ccp_fast.data.cub import cub
from ccp_fast.data.folders import folders
from ccp_fast.data.glyphs import glyphs
from ccp_fast.data.glyphs_large import glyphs_large
from ccp_fast.data.image_files import ImageFiles
from ccp_fast.data.image_set import ImageSet
from ccp_fast.data.inshop import inshop
from ccp_fast.data.packed import DataFileError
from ccp_fast.data.sop import sop
from ccp_fast.data.source import ImageSource
from ccp_fast.data.splits import EvaluationSet, Parts, Splits

__all__ = [
    "DataFileError",
    "EvaluationSet",
    "ImageFiles",
    "ImageSet",
    "ImageSource",
    "Parts",
    "Splits",
    "cars",
    "cub",
    "folders",
    "glyphs",
    "glyphs_large",
    "inshop",
    "sop",
]
