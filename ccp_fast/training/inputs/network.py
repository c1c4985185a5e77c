"""What a network wants to be shown."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's conversion to gray


@dataclass(frozen=True)
class NetworkInput:
    """Images ``[n, channels, size, size]`` of values (v − mean) / std, v in 0..1; a mean and a std per channel."""

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """ValueError if the statistics are not those of the channels."""
        if not self.channels == len(self.mean) == len(self.std):
            raise ValueError(
                f"mean, std: expected {self.channels} values each, got {self.mean} and {self.std}"
            )

    def fit(self, images: Tensor) -> Tensor:
        """float32 ``[n, c, h, w]`` of 0..1, made to have the channels and the size, and normalised.

        The whole is shown, squeezed into the square: right for glyphs and what else is held in memory in one size. Of
        photographs the middle is shown, see `EmbeddingModel.prepare`.
        """
        images = self._in_channels(images)
        if images.shape[2:] != (self.size, self.size):
            images = interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return self.normalise(images)

    def normalise(self, images: Tensor) -> Tensor:
        """float32 ``[n, channels, h, w]`` of 0..1 to (v − mean) / std."""
        if not any(self.mean) and set(self.std) == {1.0}:
            return images
        mean, std = (torch.tensor(values, device=images.device) for values in (self.mean, self.std))
        return (images - mean[:, None, None]) / std[:, None, None]

    def from_bytes(self, images: Tensor, device: torch.device) -> Tensor:
        """uint8 ``[n, channels, size, size]`` of the host, normalised on a device: bytes are a quarter to send."""
        if device.type == "cuda":
            images = images.pin_memory()  # or the host would wait for the copy
        images = images.to(device, non_blocking=True)
        mean, std = (255 * torch.tensor(v, device=device)[:, None, None] for v in (self.mean, self.std))
        return images.float().sub_(mean).div_(std)

    def _in_channels(self, images: Tensor) -> Tensor:
        """Gray images repeated, coloured ones weighted into gray."""
        if images.shape[1] == self.channels:
            return images
        if images.shape[1] == 1:
            return images.expand(-1, self.channels, -1, -1)
        if images.shape[1] == 3 and self.channels == 1:
            weights = torch.tensor(_LUMINANCE, device=images.device)
            return (images * weights[:, None, None]).sum(1, keepdim=True)
        raise ValueError(f"images: expected 1, 3 or {self.channels} channels, got {images.shape[1]}")
