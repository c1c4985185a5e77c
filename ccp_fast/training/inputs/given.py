"""Pictures that somebody has at hand: paths of files, what Pillow has opened, arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ccp_fast.data.image_files import Mode, converted, decode

ONE_OF_THEM = "a path, a picture of Pillow or uint8 [height, width] or [height, width, 3]"


@dataclass(frozen=True)
class GivenPictures:
    """An `Album` of them. Only of a path is a large JPEG decoded smaller: that would change what somebody opened."""

    given: Sequence[Any]

    def __post_init__(self) -> None:
        """ValueError where it is one picture: an array is a sequence of its rows."""
        one = isinstance(self.given, (str, os.PathLike, Image.Image))
        if one or (isinstance(self.given, np.ndarray) and self.given.ndim != 4):
            raise ValueError(
                f"images: expected a list, each {ONE_OF_THEM}, got {_told(self.given)} by itself"
            )

    def picture(self, index: int, mode: Mode, least: int | None = None) -> Image.Image:
        """In colour or gray. DataFileError for a file that cannot be decoded, ValueError for what is none of them."""
        given = self.given[index]
        if isinstance(given, (str, os.PathLike)):
            return decode(Path(given), mode, least)
        if isinstance(given, np.ndarray) and _is_picture(given):
            given = Image.fromarray(given)
        if not isinstance(given, Image.Image):
            raise ValueError(f"images[{index}]: expected {ONE_OF_THEM}, got {_told(given)}")
        try:
            return converted(given, mode)
        except ValueError as error:
            raise ValueError(f"images[{index}]: {error}") from None


def _is_picture(array: NDArray[Any]) -> bool:
    return bool(
        array.dtype == np.uint8 and array.size and array.ndim in (2, 3) and array.shape[2:] in ((), (3,))
    )


def _told(given: Any) -> str:
    if isinstance(given, np.ndarray):
        return f"{given.dtype} {list(given.shape)}"
    return type(given).__name__
