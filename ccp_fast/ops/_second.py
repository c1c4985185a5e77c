"""Second derivatives of fused operators, through their dense references."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def differentiate_twice(
    dense: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    grad: Tensor,
    grad_outputs: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """Derivatives, by `grad` and by each of the inputs, of the first derivative weighted by grad_outputs.

    The first derivative is that of dense(*inputs), times grad. One of its parts may have no weight.
    """
    with torch.enable_grad():
        grad = grad.detach().requires_grad_()
        inputs = [x.detach().requires_grad_() for x in inputs]
        first = torch.autograd.grad(dense(*inputs), inputs, grad, create_graph=True)
        weighted = [(g * w).sum() for g, w in zip(first, grad_outputs, strict=True) if w is not None]
        if not weighted:
            return (None,) * (1 + len(inputs))
        product = torch.stack(weighted).sum()
    return torch.autograd.grad(
        product, (grad, *inputs), allow_unused=True, create_graph=torch.is_grad_enabled()
    )
