"""Batches of representatives with others of their classes: alternating projections onto feasible sets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ccp_fast._checks import at_least

from ._random import random_bits
from .mper_class import MPerClassSampler

_FIRST_REPRESENTATIVE = 2  # what a random stream is for; 0 and 1 are MPerClassSampler's


class RepresentativeSampler(MPerClassSampler):
    """Batch sampler: the representatives of ``classes_per_batch`` classes, then M − 1 others of each.

    Each class has one representative at a time, the same for ``lifetime`` batches. Only pairs of a sample with
    a representative count, and gradients flow through both. The representatives are the first P samples of a
    batch, so with any loss of the package

        P = sampler.classes_per_batch
        loss(embeddings[P:], labels[P:], embeddings[:P], labels[:P]).backward()

    is a step towards the relaxed feasible set that they induce. With the next lifetime comes the next set, to be
    reached from where the last one led: (lambda/2)·‖w − w_prev‖² with a `ccp_fast.Projection` whose snapshot is
    taken then, ``if b % sampler.lifetime == 0: projection.snapshot_()``.

    Classes and the others of a class come in shuffled passes, and resuming is, as in `MPerClassSampler`. The
    samples of a class are its representatives in turn, from a random one on.

    Args:
        labels: [N] int64, any values.
        classes_per_batch: P, at most the number of classes.
        samples_per_class: M, at least 2, the representative being one of them. In a class with fewer, others
            are repeated as evenly as possible; a lone sample is also its own other.
        lifetime: batches for which a representative is kept.
        batches_per_epoch: length of one iteration; None: it never ends.
        seed: at least 0.

    Yields:
        P·M sample numbers: P representatives, then the others class by class in the same order.

    Raises:
        ValueError: labels empty or not int64 [N], or a count out of range.

    Source: arXiv 1907.07585.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        classes_per_batch: int,
        samples_per_class: int,
        *,
        lifetime: int,
        batches_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        self.lifetime = at_least("lifetime", lifetime, 1)
        super().__init__(
            labels,
            classes_per_batch,
            at_least("samples_per_class", samples_per_class, 2),
            batches_per_epoch=batches_per_epoch,
            seed=seed,
        )

    def batch(self, number: int) -> list[int]:
        """Batch ``number``, P·M sample numbers; the position stays."""
        classes, visits = zip(*self._visits(number), strict=True)
        representatives = self._representatives(np.array(classes), number)
        others = [
            self._others(c, r, visit) for c, r, visit in zip(classes, representatives, visits, strict=True)
        ]
        return [int(i) for i in np.concatenate([representatives, *others])]

    def representatives(self, number: int) -> Tensor:
        """[C] int64: the sample that represents each class, by class number, in batch ``number``."""
        return torch.from_numpy(self._representatives(np.arange(len(self._classes)), number))

    def _representatives(self, classes: NDArray[np.int64], number: int) -> NDArray[np.int64]:
        starts = self._classes.offsets[classes]
        sizes = self._classes.offsets[classes + 1] - starts
        places = (self._first[classes] + number // self.lifetime) % sizes
        samples: NDArray[np.int64] = self._classes.samples[starts + places]
        return samples

    def _others(self, class_number: int, representative: int, visit: int) -> NDArray[np.int64]:
        members = self._members(class_number)
        others = members[members != representative] if len(members) > 1 else members
        return self._deal(class_number, others, self.samples_per_class - 1, visit)

    def _identity(self) -> dict[str, int]:
        return {**super()._identity(), "lifetime": self.lifetime}

    def _shuffle(self, seed: int) -> None:
        super()._shuffle(seed)
        # [C] where the turn of each class's samples begins; half of 64 bits leaves room to count on.
        self._first = (random_bits(seed, (_FIRST_REPRESENTATIVE,), len(self._classes)) >> 32).astype(np.int64)
