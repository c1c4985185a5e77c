"""`ccp_fast::farthest_points`: greedy k-center over ragged segments, its fake, and no derivative."""

from __future__ import annotations

import torch
from torch import Tensor

import ccp_fast.ops  # noqa: F401

farthest_points = torch.ops.ccp_fast.farthest_points.default


@torch.library.register_fake("ccp_fast::farthest_points")
def _(
    points: Tensor,
    offsets: Tensor,
    seeds: Tensor | None,
    seed_offsets: Tensor | None,
    k: int,
    normalize: str,
    pad: bool,
) -> tuple[Tensor, Tensor]:
    shape = (offsets.shape[0] - 1, k)
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    return points.new_empty(shape, dtype=torch.int64), points.new_empty(shape, dtype=dtype)


# A selection has no derivative: its outputs never require grad, whatever the points do.
_library = torch.library.Library("ccp_fast", "FRAGMENT")
_library.impl("farthest_points", torch.library.fallthrough_kernel, "Autograd")
