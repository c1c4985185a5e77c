"""Batches: which images, augmented how, as a function of the seed and the step alone."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast.data import ImageSet, glyphs
from ccp_fast.samplers import ClassPoolSampler, MPerClassSampler, Pool
from ccp_fast.training.augment import Augment, to_float
from ccp_fast.training.config import Config
from ccp_fast.training.errors import UserError


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
    """Batches by step and candidate pools by sub-problem.

    Nothing here has a state: the batch of a step is the same whether or not the run was interrupted before.
    """

    def __init__(self, images: ImageSet, config: Config) -> None:
        self.images = images
        self._seed = config.seed
        self._augment = Augment(config.augment)
        self._generator = torch.Generator()
        try:
            self._sampler = MPerClassSampler(
                images.labels, config.batch.classes, config.batch.samples, seed=config.seed
            )
        except ValueError as error:
            raise UserError(f"batch.classes: {str(error).partition(': ')[2]}") from None
        self._pools = ClassPoolSampler(images.labels, config.ccp.pool_size, seed=config.seed)

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from 0."""
        chosen = torch.tensor(self._sampler.batch(step))
        # A seed for each (run, step); the large odd factor keeps the ranges of two runs far apart.
        self._generator.manual_seed((self._seed * 0x9E3779B97F4A7C15 + step) % 2**63)
        images = self._augment(self.images.images[chosen], self._generator)
        return Batch(images, self.images.labels[chosen])

    def pool(self, subproblem: int) -> Pool:
        """Candidates for the proxies of a sub-problem."""
        return self._pools.pool(subproblem)

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
