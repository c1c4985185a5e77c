"""The pool of samples of each class from which the proxies of a sub-problem are chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ccp_fast._checks import at_least

from ._classes import Classes
from ._random import random_bits


class Pool(NamedTuple):
    """Samples of every class: those of class c are ``indices[offsets[c] : offsets[c + 1]]``."""

    indices: Tensor  # [total] int64
    offsets: Tensor  # [C + 1] int64


class ClassPoolSampler:
    """Up to ``pool_size`` random samples of every class, drawn anew for each sub-problem of CCP.

    Args:
        labels: [N] int64, any values. Classes are numbered by ascending label, see ``classes``.
        pool_size: b.
        seed: at least 0.
        distinct: True: no sample twice, so a class of fewer than b samples gives what it has. False: b of
            every class; the samples of a small class come again once all of them are drawn, as in the
            authors' code (ccp-dml).

    Raises:
        ValueError: labels empty or not int64 [N], pool_size < 1, seed < 0.
    """

    def __init__(
        self, labels: Tensor | Sequence[int], pool_size: int, *, seed: int = 0, distinct: bool = True
    ) -> None:
        self._classes = Classes(labels)
        self.pool_size = at_least("pool_size", pool_size, 1)
        self.seed = at_least("seed", seed, 0)
        self.distinct = distinct

    @property
    def classes(self) -> Tensor:
        """[C] int64: the label of each class number."""
        return torch.from_numpy(self._classes.labels.copy())

    def pool(self, k: int) -> Pool:
        """The pool of sub-problem ``k`` >= 0, a function of (labels, arguments, seed, k) alone."""
        at_least("k", k, 0)
        sizes = np.diff(self._classes.offsets)  # [C]
        passes = np.ones_like(sizes) if self.distinct else -(-self.pool_size // sizes)  # [C] over a class
        totals = sizes * passes
        # Each sample once for each pass, in the order of class, pass and random bits: of a class the first b.
        owner = np.repeat(np.arange(len(sizes)), sizes)  # [N] class of each entry of `samples`
        entry = np.repeat(np.arange(len(owner)), passes[owner])  # [T] into `samples`
        turn = np.arange(len(entry)) - np.searchsorted(entry, entry)  # [T] which pass
        order = np.lexsort((random_bits(self.seed, (k,), len(entry)), turn, owner[entry]))
        rank = np.arange(len(entry)) - np.repeat(totals.cumsum() - totals, totals)  # within the class
        chosen = entry[order[rank < self.pool_size]]
        offsets = np.concatenate([[0], np.minimum(totals, self.pool_size).cumsum()])
        return Pool(torch.from_numpy(self._classes.samples[chosen]), torch.from_numpy(offsets))
