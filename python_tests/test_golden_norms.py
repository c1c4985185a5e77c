"""`ball` and `unit` normalisation, value and gradient, against TensorFlow's."""

from __future__ import annotations

import pytest
import torch
from golden import Case, load
from golden.compare import Array, assert_golden
from golden.coverage import NORMS, cases_of

from ccp_fast.reference.pairs import Normalize, normalise


def value_and_gradient(case: Case, how: Normalize) -> tuple[Array, Array]:
    x = torch.from_numpy(case["x"]).double().requires_grad_()
    y = normalise(x, how)
    (dx,) = torch.autograd.grad(y, x, torch.from_numpy(case["dy"]).double())
    return y.detach().numpy(), dx.numpy()


@pytest.mark.parametrize("name", cases_of(NORMS))
def test_ball(name: str) -> None:
    """v/max(1,‖v‖): the identity, gradient included, up to and with ‖v‖ = 1."""
    case = load(name)
    y, dx = value_and_gradient(case, "ball")
    assert_golden("y", y, case.best("y"))
    assert_golden("dx", dx, case.best("dx"))


@pytest.mark.parametrize("name", cases_of(NORMS))
def test_unit(name: str) -> None:
    """v/‖v‖; at 0 TensorFlow multiplies the gradient by 1e6, here it is 0."""
    case = load(name)
    y, dx = value_and_gradient(case, "unit")
    zero = ~case["x"].any(axis=-1)
    assert_golden("y", y, case.best("classical_y"))
    assert not dx[zero].any()
    assert_golden("dx", dx[~zero], case.best("classical_dx")[~zero])
