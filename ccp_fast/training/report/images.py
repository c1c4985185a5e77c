"""Small images inside the page."""

from __future__ import annotations

import base64
import colorsys
import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from torch import Tensor

PHOTOGRAPH = 84  # pixels, two for each of the page


def thumbnail(image: Tensor) -> str:
    """uint8 [c, h, w] as a data URI: a glyph, which has one channel and white ink, as black ink on white."""
    if len(image) == 1:
        return _png(Image.fromarray(255 - _ink(image)))
    return _jpeg(_photograph(image, PHOTOGRAPH))


def coloured(image: Tensor, colour: tuple[int, int, int]) -> str:
    """uint8 [c, h, w] as a data URI: a glyph in a colour on nothing, a photograph in a frame of it."""
    if len(image) == 1:
        ink = _ink(image)
        flat = np.broadcast_to(np.array(colour, dtype=np.uint8), (*ink.shape, 3))
        return _png(Image.fromarray(np.dstack([flat, ink])))
    return _jpeg(ImageOps.expand(_photograph(image, PHOTOGRAPH // 2), border=3, fill=colour))


def hues(count: int) -> list[tuple[int, int, int]]:
    """Colours around the circle, neighbours far apart, readable on white and on black."""
    return [
        _rgb(i * 0.381966 % 1.0, 0.40 + 0.16 * (i % 2)) for i in range(count)
    ]  # steps of the golden angle


def _rgb(hue: float, lightness: float) -> tuple[int, int, int]:
    r, g, b = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.75))
    return r, g, b


def _ink(image: Tensor) -> npt.NDArray[np.uint8]:
    return image.squeeze(0).numpy()


def _photograph(image: Tensor, side: int) -> Image.Image:
    """The square in the middle."""
    return ImageOps.fit(Image.fromarray(image.permute(1, 2, 0).numpy()), (side, side))


def _png(image: Image.Image) -> str:
    return _data_uri(image, "png", optimize=True)


def _jpeg(image: Image.Image) -> str:
    return _data_uri(image, "jpeg", quality=80)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
