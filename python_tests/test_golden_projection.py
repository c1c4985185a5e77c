"""The gradient of the proximal term against the published DistanceRegularizer."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from golden import load
from golden.compare import assert_golden
from golden.coverage import PROJECTION, cases_of

from ccp_fast import functional, reference


@pytest.mark.parametrize("api", [reference, functional], ids=["reference", "fused"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("snapshot", ["prev", "prevzero"])
@pytest.mark.parametrize("name", cases_of(PROJECTION))
def test_gradient(name: str, snapshot: str, dtype: torch.dtype, api: ModuleType) -> None:
    """Entries 0 to 2 are weights; entry 3 are proxies, which the term leaves alone."""
    case = load(name)
    params, grads = (
        [torch.from_numpy(case[f"{key}_{i}"]).to(dtype) for i in range(3)] for key in ("w", "grad_in")
    )
    previous = [torch.from_numpy(case[f"prev_{i}"]).to(dtype) for i in range(3)]
    if snapshot == "prevzero":  # before the first snapshot the anchor is zero
        previous = [torch.zeros_like(p) for p in params]
    lam = case.flags["penalty_weight"]
    penalty = api.projection_grad_(params, previous, lam, grads)

    for i, grad in enumerate(grads):
        key = f"grad_out_{i}" if snapshot == "prev" else f"grad_out_prevzero_{i}"
        assert_golden(key, grad.numpy(), case[key], relative=1e-6)  # float32 output
    by_hand = (
        0.5
        * lam
        * sum((p.double() - q.double()).square().sum() for p, q in zip(params, previous, strict=True))
    )
    torch.testing.assert_close(penalty.double(), by_hand, rtol=1e-6, atol=0)
