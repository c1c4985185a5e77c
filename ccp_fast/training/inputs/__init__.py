"""From images to what a network takes.

`network`  what a network wants, and images in memory made into that
`memory`   a source whose pixels are in memory
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ccp_fast.data import ImageSet, ImageSource
from ccp_fast.training.config import Config
from ccp_fast.training.inputs.memory import MemoryInput
from ccp_fast.training.inputs.network import NetworkInput

__all__ = ["ImageInput", "NetworkInput", "open_input", "plain_batches"]


class ImageInput(Protocol):
    """Images of a source as float32 ``[n, channels, size, size]``, normalised as the network wants them."""

    def augmented(self, step: int, samples: Sequence[int]) -> Tensor:
        """The images of a batch, changed as is that step's turn: a function of source, settings and arguments."""

    def plain(self, samples: Sequence[int]) -> Tensor:
        """Images as they are seen in evaluation."""


def open_input(images: ImageSource, config: Config, wanted: NetworkInput) -> ImageInput:
    """The input that fits a source."""
    if isinstance(images, ImageSet):
        return MemoryInput(images, config, wanted)
    raise TypeError(f"images: expected an ImageSet, got {type(images).__name__}")


def plain_batches(
    images: ImageSource, config: Config, wanted: NetworkInput, batch_size: int = 256
) -> Iterator[Tensor]:
    """All images of a source in its order, as they are seen in evaluation."""
    opened = open_input(images, config, wanted)
    for part in torch.arange(len(images)).split(batch_size):
        yield opened.plain(part.tolist())
