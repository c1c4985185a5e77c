"""A labelled set of image files, decoded when they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from ccp_fast.data.packed import DataFileError
from ccp_fast.data.source import ImageSource

if TYPE_CHECKING:
    from PIL import Image

Mode = Literal["RGB", "L"]  # colour or gray

_SIXTEEN_BITS_AS_I = ("PNG", "PPM")  # PNG: as older Pillow opens it


@dataclass(frozen=True)
class ImageFiles(ImageSource):
    """Images with a class each: ``paths[i]``, below ``root``, is of class ``labels[i]``.

    ``labels``: int64 ``[n]``, 0..num_classes-1, numbered within this set. ``class_names[label]`` names a class.
    """

    root: Path
    paths: tuple[str, ...]
    labels: Tensor
    class_names: tuple[str, ...]

    def image(self, index: int) -> Tensor:
        """One image, uint8 ``[3, height, width]``. DataFileError if it cannot be decoded."""
        return torch.from_numpy(np.array(self.picture(index, "RGB"))).permute(2, 0, 1)

    def picture(self, index: int, mode: Mode, least: int | None = None) -> Image.Image:
        """One image as `decode` gives it."""
        return decode(self.root / self.paths[index], mode, least)

    def caption(self, index: int) -> str:
        """The class and the file."""
        return f"{self.class_names[int(self.labels[index])]}: {self.paths[index]}"

    def _taken(self, rows: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> ImageFiles:
        return ImageFiles(self.root, tuple(self.paths[i] for i in rows.tolist()), labels, class_names)


def decode(path: Path, mode: Mode, least: int | None = None) -> Image.Image:
    """The picture in a file, in colour or gray. DataFileError if there is none, or not the whole of it.

    least: a JPEG may be decoded smaller, by a power of two, as long as its shorter side keeps so many pixels. That
    saves most of the time of a large photograph.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as file:
            if least is not None and file.format == "JPEG":
                shorter = min(file.size)
                # Pillow takes the smallest of the sizes 1, 1/2, 1/4, 1/8 that is at least as large as asked for.
                file.draft(mode, tuple(side * least // shorter for side in file.size))
            return converted(file, mode)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        reason = "it is no image that Pillow knows"
    except Exception as error:  # what Pillow raises for a damaged file depends on where the damage is
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    raise DataFileError(f"image {path} cannot be read: {reason}")


def converted(picture: Image.Image, mode: Mode) -> Image.Image:
    """A picture in colour or gray, 8 bits a channel: of 16 bits v becomes v / 257, to the nearest.

    Pillow itself would show all above 255 as white. ValueError for integers and floats whose range no format says.
    """
    from PIL import Image

    if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format in _SIXTEEN_BITS_AS_I):
        values = np.asarray(picture).astype(np.uint32)
        picture = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif picture.mode in ("I", "F"):
        raise ValueError(
            f"expected 8 or 16 bits a channel, got Pillow's mode {picture.mode}, whose black and white nobody knows"
        )
    return picture.convert(mode)
