"""What is trained on: images, augmented as a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast.data import ImageSource
from ccp_fast.training.config import Config
from ccp_fast.training.inputs import NetworkInput, open_input


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

    def batch(self, step: int, samples: Sequence[int]) -> Batch:
        """These images, augmented as is that step's turn, and their labels."""
        return Batch(self._input.augmented(step, samples), self.labels[torch.tensor(samples)])

    def plain_images(self, indices: Tensor) -> Tensor:
        """Images without augmentation, [n, c, h, w] float32."""
        return self._input.plain(indices.tolist())
