"""Small images inside the page."""

from __future__ import annotations

import base64
import colorsys
import io

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor


def ink_on_paper(image: Tensor) -> str:
    """A glyph, uint8 [1, h, w] with white ink, as a data URI: black ink on white."""
    return _data_uri(Image.fromarray(255 - _pixels(image)))


def ink_alone(image: Tensor, colour: tuple[int, int, int]) -> str:
    """A glyph as a data URI: ink in a colour on nothing."""
    ink = _pixels(image)
    flat = np.broadcast_to(np.array(colour, dtype=np.uint8), (*ink.shape, 3))
    return _data_uri(Image.fromarray(np.dstack([flat, ink])))


def hues(count: int) -> list[tuple[int, int, int]]:
    """Colours around the circle, neighbours far apart, readable on white and on black."""
    return [
        _rgb(i * 0.381966 % 1.0, 0.40 + 0.16 * (i % 2)) for i in range(count)
    ]  # steps of the golden angle


def _rgb(hue: float, lightness: float) -> tuple[int, int, int]:
    r, g, b = (round(255 * part) for part in colorsys.hls_to_rgb(hue, lightness, 0.75))
    return r, g, b


def _pixels(image: Tensor) -> npt.NDArray[np.uint8]:
    return image.squeeze(0).numpy()


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
