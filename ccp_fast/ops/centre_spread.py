"""`ccp_fast::centre_spread`: SoftTriple's regulariser, its fakes and its derivatives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import ccp_fast.ops  # noqa: F401
from ccp_fast import reference
from ccp_fast.ops._second import differentiate_twice

_forward = torch.ops.ccp_fast.centre_spread.default
_backward = torch.ops.ccp_fast.centre_spread_backward.default


def centre_spread(proxies: Tensor) -> Tensor:
    """Σ_{c, k<k'} ‖w_ck − w_ck'‖ / (C·K·(K−1)) of proxies [C, K, D], each made one of length 1; 0 for K = 1.

    Memory is O(C·K·D) for the gradient and nothing else. K is at most 32.
    """
    value: Tensor = _forward(proxies)
    return value


@torch.library.register_fake("ccp_fast::centre_spread")
def _(proxies: Tensor) -> Tensor:
    return proxies.new_empty((), dtype=torch.promote_types(proxies.dtype, torch.float32))


@torch.library.register_fake("ccp_fast::centre_spread_backward")
def _(grad: Tensor, proxies: Tensor) -> Tensor:
    return proxies.new_empty(proxies.shape)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> Tensor:
    (proxies,) = ctx.saved_tensors
    gradient: Tensor = _backward(grad, proxies)
    return gradient


def _differentiate_twice(ctx: Any, grad_gradient: Tensor) -> tuple[Tensor | None, ...]:
    grad, proxies = ctx.saved_tensors
    return differentiate_twice(reference.centre_spread, (proxies,), grad, (grad_gradient,))


torch.library.register_autograd("ccp_fast::centre_spread", _differentiate, setup_context=_save)
torch.library.register_autograd("ccp_fast::centre_spread_backward", _differentiate_twice, setup_context=_save)
