"""From images to what a network takes.

`network`  what a network wants, and images in memory made into that
`memory`   a source whose pixels are in memory
`files`    a source of image files, decoded by worker processes
`given`    pictures that somebody has at hand, read like files
`broken`   which files cannot be decoded
`remembered`  which could be before
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ccp_fast.data import ImageFiles, ImageSet, ImageSource
from ccp_fast.training.inputs.files import FilesInput
from ccp_fast.training.inputs.given import GivenPictures
from ccp_fast.training.inputs.memory import MemoryInput
from ccp_fast.training.inputs.network import NetworkInput
from ccp_fast.training.order import WHOLE
from ccp_fast.training.settings import Config

__all__ = ["GivenPictures", "ImageInput", "NetworkInput", "open_input", "plain_batches"]


class ImageInput(Protocol):
    """Images of a source as float32 ``[n, channels, size, size]``, normalised as the network wants them.

    Those of files are on `compute.device`, those in memory where they were: a `Network` takes both.
    """

    def augmented(self, step: int, samples: Sequence[int], part: slice = WHOLE) -> Tensor:
        """The images of a batch, or of that part of it, changed as is that step's turn.

        A function of source, settings and arguments; an image is the same whatever part it is asked for with.
        """

    def plain_batches(self, samples: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Images [n] int64 as they are seen in evaluation, in this order."""

    def follow(self, plan: Callable[[int], Sequence[int]], part: slice = WHOLE) -> None:
        """Told the batch that a step will probably ask for, so that its part may be made ready beforehand."""


def open_input(images: ImageSource, config: Config, wanted: NetworkInput) -> ImageInput:
    """The input that fits a source."""
    if isinstance(images, ImageSet):
        return MemoryInput(images, config, wanted)
    if isinstance(images, ImageFiles):
        return FilesInput(images, config, wanted)
    raise TypeError(f"images: expected an ImageSet or ImageFiles, got {type(images).__name__}")


def plain_batches(
    images: ImageSource, config: Config, wanted: NetworkInput, batch_size: int = 256
) -> Iterator[Tensor]:
    """All images of a source in its order, as they are seen in evaluation."""
    return open_input(images, config, wanted).plain_batches(torch.arange(len(images)), batch_size)
