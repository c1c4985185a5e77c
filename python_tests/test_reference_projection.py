"""The reference of the proximal term."""

from __future__ import annotations

import pytest
import torch
from helpers import one_thread, vectors  # noqa: F401

from ccp_fast import reference


def test_projection_is_the_gradient_of_its_penalty() -> None:
    params = [
        vectors(3, 4).requires_grad_(),
        vectors(0).requires_grad_(),
        vectors(2, seed=3).requires_grad_(),
    ]
    previous = [vectors(*p.shape, seed=7 + i) for i, p in enumerate(params)]
    wanted = 0.5 * 0.3 * sum(((p - q) ** 2).sum() for p, q in zip(params, previous, strict=True))
    for p in params:
        p.grad = torch.ones_like(p)
    grads = torch.autograd.grad(wanted, params)
    penalty = reference.projection_grad_(params, previous, 0.3)
    torch.testing.assert_close(penalty, wanted.detach())
    for p, g in zip(params, grads, strict=True):
        torch.testing.assert_close(p.grad, 1 + g)


def test_projection_skips_parameters_without_a_gradient() -> None:
    params, previous = [vectors(3), vectors(4)], [torch.zeros(3).double(), torch.zeros(4).double()]
    grads = [None, torch.zeros(4).double()]
    penalty = reference.projection_grad_(params, previous, 2.0, grads)
    torch.testing.assert_close(penalty, params[0].square().sum() + params[1].square().sum())
    torch.testing.assert_close(grads[1], 2 * params[1])


def test_projection_names_what_does_not_fit() -> None:
    w = torch.zeros(3)
    with pytest.raises(ValueError, match="expected equal lengths, got 1, 2, 1"):
        reference.projection_grad_([w], [w, w], 1.0)
    with pytest.raises(ValueError, match=r"previous\[0\]: expected shape \[3\], got \[2\]"):
        reference.projection_grad_([w], [w[:2]], 1.0)
    with pytest.raises(ValueError, match=r"grads\[0\]: expected shape \[3\], got \[2\]"):
        reference.projection_grad_([w], [w], 1.0, [w[:2]])
