"""What is trained on: images, augmented as a function of the seed and the step alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast.data import ImageSet, glyphs
from ccp_fast.training.augment import Augment, to_float
from ccp_fast.training.config import Config


class Splits(NamedTuple):
    """Classes to train on, to choose the best step by, and to report; disjoint."""

    train: ImageSet
    val: ImageSet
    test: ImageSet


def load_splits() -> Splits:
    """The glyph set, read from the package."""
    return Splits(glyphs("train"), glyphs("val"), glyphs("test"))


class Batch(NamedTuple):
    """What one step trains on."""

    images: Tensor  # [n, c, h, w] float32
    labels: Tensor  # [n] int64


class TrainingData:
    """The training images, and batches of them.

    Nothing here has a state: the batch of a step is the same whether or not the run was interrupted before.
    """

    def __init__(self, images: ImageSet, config: Config) -> None:
        self.images = images
        self._seed = config.seed
        self._augment = Augment(config.augment)
        self._generator = torch.Generator()

    def batch(self, step: int, samples: Sequence[int]) -> Batch:
        """These images, augmented as is that step's turn."""
        chosen = torch.tensor(samples)
        # A seed for each (run, step); the large odd factor keeps the ranges of two runs far apart.
        self._generator.manual_seed((self._seed * 0x9E3779B97F4A7C15 + step) % 2**63)
        images = self._augment(self.images.images[chosen], self._generator)
        return Batch(images, self.images.labels[chosen])

    def plain_images(self, indices: Tensor) -> Tensor:
        """Images without augmentation."""
        return to_float(self.images.images[indices])


def first_classes(images: ImageSet, count: int) -> ImageSet:
    """The first `count` classes of a set."""
    kept = images.labels < count
    return ImageSet(
        images.images[kept],
        images.labels[kept],
        images.class_names[:count],
        images.sources,
        images.source_ids[kept],
    )
