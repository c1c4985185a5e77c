"""`ccp_fast::projection_grad_`: adds the proximal gradient in place; its fake, and no derivative."""

from __future__ import annotations

import torch
from torch import Tensor

import ccp_fast.ops  # noqa: F401

projection_grad_ = torch.ops.ccp_fast.projection_grad_.default


@torch.library.register_fake("ccp_fast::projection_grad_")
def _(grads: list[Tensor], params: list[Tensor], previous: list[Tensor], lam: float) -> Tensor:
    is_double = any(p.dtype == torch.float64 for p in params)
    return params[0].new_empty((), dtype=torch.float64 if is_double else torch.float32)


# It writes gradients; nothing differentiates through that.
_library = torch.library.Library("ccp_fast", "FRAGMENT")
_library.impl("projection_grad_", torch.library.fallthrough_kernel, "Autograd")
