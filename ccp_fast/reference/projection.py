"""The proximal term of the sub-problems: lambda/2 · ‖w − w_prev‖² over a list of parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def projection_grad_(
    params: Sequence[Tensor],
    previous: Sequence[Tensor],
    lam: float,
    grads: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """grads[i] += lam·(params[i] − previous[i]) in place; returns 0.5·lam·Σ‖params[i] − previous[i]‖².

    `grads` defaults to the `.grad` of the parameters. A gradient that is None is skipped; its parameter counts in
    the penalty all the same. The penalty is a scalar tensor on the device of the first parameter, float64 if a
    parameter is, float32 otherwise. Raises ValueError for lists of different lengths
    or tensors of different shapes.
    """
    if grads is None:
        grads = [p.grad for p in params]
    if not len(params) == len(previous) == len(grads):
        raise ValueError(
            "params, previous, grads: expected equal lengths, "
            f"got {len(params)}, {len(previous)}, {len(grads)}"
        )
    wide = torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    penalty = torch.zeros((), dtype=wide, device=params[0].device if params else None)
    for i, (param, before, grad) in enumerate(zip(params, previous, grads, strict=True)):
        if before.shape != param.shape:
            raise ValueError(f"previous[{i}]: expected shape {list(param.shape)}, got {list(before.shape)}")
        step = param.to(wide) - before.to(wide)
        penalty += step.square().sum().to(penalty.device)
        if grad is None:
            continue
        if grad.shape != param.shape:
            raise ValueError(f"grads[{i}]: expected shape {list(param.shape)}, got {list(grad.shape)}")
        grad += (lam * step).to(grad.dtype)
    return 0.5 * lam * penalty
