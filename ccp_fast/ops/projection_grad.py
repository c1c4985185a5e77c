"""`ccp_fast::projection_grad_`: adds the proximal gradient in place; its fake, and no derivative."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import ccp_fast.ops  # noqa: F401
from ccp_fast._checks import FLOATS

_op = torch.ops.ccp_fast.projection_grad_.default


@torch.library.register_fake("ccp_fast::projection_grad_")
def _(grads: list[Tensor], params: list[Tensor], previous: list[Tensor], lam: float) -> Tensor:
    if any(x.device != params[0].device for x in (*grads, *params, *previous)):
        # Where a meta tensor is among them.
        raise RuntimeError("grads, params, previous: expected all on one device")
    is_double = any(p.dtype == torch.float64 for p in params)
    return params[0].new_empty((), dtype=torch.float64 if is_double else torch.float32)


# It writes gradients; nothing differentiates through that.
_library = torch.library.Library("ccp_fast", "FRAGMENT")
_library.impl("projection_grad_", torch.library.fallthrough_kernel, "Autograd")


def projection_grad_(
    params: Sequence[Tensor], previous: Sequence[Tensor], lam: float, grads: Sequence[Tensor | None]
) -> Tensor:
    """grads[i] += lam·(params[i] − previous[i]), on any devices; at least one parameter, lam of either sign.

    Returns lam/2 · Σ‖params[i] − previous[i]‖² on the first parameter's device. Raises ValueError for a
    tensor that does not fit.
    """
    total: Tensor | None = None
    for device in dict.fromkeys(p.device for p in params):
        triples = [t for t in zip(grads, params, previous, strict=True) if t[1].device == device]
        # The operator takes the parameters that have a gradient first.
        written = _local([g for g, _, _ in triples if g is not None])
        triples.sort(key=lambda t: t[0] is None)
        try:
            penalty = _op(
                written, _local([w for _, w, _ in triples]), _local([v for _, _, v in triples]), lam
            )
        except RuntimeError:
            # The operator has checked, too, but a tensor on a foreign device would not even get there. Not
            # beforehand: for a network of many small tensors these checks cost more than the arithmetic.
            _check_lists(params, previous, grads)
            raise
        if not torch.compiler.is_compiling():
            torch.autograd.graph.increment_version(written)
        total = penalty if total is None else total + penalty.to(total.device)
    assert total is not None
    return total


def _local(tensors: list[Tensor]) -> list[Tensor]:
    """Of DTensors the parts that this rank holds; other tensors as they are."""
    return [t.to_local() if hasattr(t, "to_local") else t for t in tensors]


def _check_lists(
    params: Sequence[Tensor], previous: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> None:
    for i, (w, v, g) in enumerate(zip(params, previous, grads, strict=True)):
        for name, x in (("params", w), ("previous", v), ("grads", g)):
            if x is None:
                continue
            if x.shape != w.shape or x.device != w.device:
                raise ValueError(
                    f"{name}[{i}]: expected shape {list(w.shape)} on {w.device} like params[{i}], "
                    f"got {list(x.shape)} on {x.device}"
                )
            if x.dtype not in FLOATS or x.layout != torch.strided:
                raise ValueError(
                    f"{name}[{i}]: expected a dense tensor of float32, float64, bfloat16 or float16, "
                    f"got {x.dtype} with layout {x.layout}"
                )
