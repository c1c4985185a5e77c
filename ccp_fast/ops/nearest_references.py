"""`ccp_fast::nearest_references`: the k nearest references of every anchor, its fake, and no derivative."""

from __future__ import annotations

import torch
from torch import Tensor

import ccp_fast.ops  # noqa: F401

nearest_references = torch.ops.ccp_fast.nearest_references.default


@torch.library.register_fake("ccp_fast::nearest_references")
def _(
    anchors: Tensor, references: Tensor, k: int, normalize: str, exclude_self: bool, allow_tf32: bool
) -> tuple[Tensor, Tensor]:
    shape = (anchors.shape[0], k)
    dtype = torch.float64 if torch.float64 in (anchors.dtype, references.dtype) else torch.float32
    return anchors.new_empty(shape, dtype=torch.int64), anchors.new_empty(shape, dtype=dtype)


# A choice has no derivative: its outputs never require grad, whatever the vectors do.
_library = torch.library.Library("ccp_fast", "FRAGMENT")
_library.impl("nearest_references", torch.library.fallthrough_kernel, "Autograd")
