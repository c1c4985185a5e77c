"""Samples grouped by class."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ccp_fast._checks import describe


class Classes:
    """Sample numbers by class; classes are numbered by ascending label."""

    def __init__(self, labels: Tensor | Sequence[int]) -> None:
        if not isinstance(labels, Tensor):
            try:
                labels = torch.as_tensor(labels)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"labels: expected integers, got {labels!r:.60}") from error
        if labels.dtype != torch.int64 or labels.ndim != 1 or not len(labels):
            raise ValueError(f"labels: expected int64 of shape [N] with N >= 1, got {describe(labels)}")
        values = labels.detach().cpu().numpy()
        self.checksum = zlib.crc32(np.ascontiguousarray(values).data)
        self.labels, counts = np.unique(values, return_counts=True)  # [C], [C]
        self.samples = values.argsort(kind="stable")  # [N] by class, ascending within it
        self.offsets = np.concatenate([[0], counts.cumsum()])  # [C + 1]

    def __len__(self) -> int:
        return len(self.labels)
