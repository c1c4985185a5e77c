"""One call of the CUDA nearest references under the emulator, with the arguments of the op."""

from __future__ import annotations

import math

import emulator
import torch
from torch import Tensor

from ccp_fast.functional import NearestReferences


def emulate(
    anchors: Tensor, references: Tensor | None, k: int, *, normalize: str | None = None, precise: bool = True,
    multiprocessors: int = 2, seed: int = 0, sanitize: bool = False, missing: int = 0,
) -> NearestReferences:  # fmt: skip
    """The kernels' result; what they leave unwritten is −99 or NaN. So many references come first and are not there."""
    module = emulator.load(sanitize=sanitize)
    module.set_seed(seed)
    a = anchors.contiguous()
    r = a if references is None else references.flatten(0, -2).contiguous()
    indices = torch.full((len(a), k), -99)
    distances = torch.full((len(a), k), math.nan)
    module.nearest_references(
        *(
            argument
            for x, before in ((a, 0), (r, missing))
            for argument in (
                x.data_ptr() - before * x.shape[1] * x.element_size(),
                str(x.dtype).removeprefix("torch."),
                len(x) + before,
            )
        ),
        a.shape[1],
        k,
        normalize or "none",
        references is None,
        precise,
        multiprocessors,
        indices.data_ptr(),
        distances.data_ptr(),
    )
    return NearestReferences(indices, distances)
