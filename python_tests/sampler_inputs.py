"""Labels of classes of any sizes, in any order."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

LABELS = [7, -(2**40), 2**24, 2**24 + 1, 0, 3, 2**62, -1, 12]


@st.composite
def class_sizes(draw: st.DrawFn, smallest: int = 1, largest: int = 9) -> list[int]:
    return draw(st.lists(st.integers(smallest, largest), min_size=1, max_size=len(LABELS)))


def labels_of(sizes: list[int], seed: int = 0) -> torch.Tensor:
    labels = torch.tensor(LABELS[: len(sizes)]).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
