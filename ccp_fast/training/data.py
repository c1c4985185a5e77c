"""What is trained on: images, augmented as a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast.data import ImageSource
from ccp_fast.training.inputs import NetworkInput, open_input
from ccp_fast.training.order import WHOLE
from ccp_fast.training.settings import Config


class Batch(NamedTuple):
    """What one step trains on."""

    images: Tensor  # [n, c, h, w] float32
    labels: Tensor  # [n] int64


class TrainingData:
    """The training images, and batches of them.

    Nothing here has a state: the batch of a step is the same whether or not the run was interrupted before.
    """

    def __init__(self, images: ImageSource, config: Config, wanted: NetworkInput) -> None:
        self.labels, self.num_classes = images.labels, images.num_classes
        self._input = open_input(images, config, wanted)

    def batch(self, step: int, samples: Sequence[int], part: slice = WHOLE) -> Batch:
        """These images, or a part of them, augmented as is that step's turn, and their labels."""
        labels = self.labels[torch.tensor(samples)[part]]
        return Batch(self._input.augmented(step, samples, part), labels)

    def follow(self, plan: Callable[[int], Sequence[int]], part: slice = WHOLE) -> None:
        """Told the samples of a step, as far as they are known: batches may be made ready beforehand."""
        self._input.follow(plan, part)

    def plain_batches(self, indices: Tensor, batch_size: int = 256) -> Iterator[Tensor]:
        """Images as they are seen in evaluation, [n, c, h, w] float32, in the order of the indices."""
        return self._input.plain_batches(indices, batch_size)
