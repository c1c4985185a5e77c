"""Comparing with golden arrays; tolerances.md tells where the numbers come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

RELATIVE = {"float64": 1e-9, "float32": 2e-5}  # of the largest magnitude, by the golden array's dtype
LOSS_ROUNDING = {"float64": 1e-13, "float32": 2e-7}  # of |loss|: what cancels inside a gradient

Array = npt.NDArray[Any]


def largest(x: Array) -> float:
    return float(np.abs(x).max(initial=0.0))


def assert_golden(
    name: str, ours: Array, golden: Array, loss: float = 0.0, relative: float | None = None
) -> None:
    """|ours − golden| <= relative·max|golden| + rounding·|loss|, everywhere."""
    assert ours.shape == golden.shape, f"{name}: shape {ours.shape}, expected {golden.shape}"
    dtype = golden.dtype.name
    allowed = (relative or RELATIVE[dtype]) * largest(golden) + LOSS_ROUNDING[dtype] * abs(loss)
    error = largest(ours - golden)
    assert error <= allowed, (
        f"{name}: off by {error:.3g}, allowed {allowed:.3g}, largest {largest(golden):.3g}"
    )


def assert_within_budget(
    name: str, ours: Array, eager: Array, truth: Array, loss: float, sharpness: float = 1.0
) -> None:
    """|ours − truth| <= 2·|eager − truth| + tiny in the largest magnitude, all float32 against float64.

    A logit as large as `sharpness` carries that many roundings of 1, and exp makes them relative errors.
    """
    assert np.isfinite(ours).all(), f"{name}: not finite"
    rounding = float(np.finfo(np.float32).eps)
    tiny = (16 + sharpness) * rounding * largest(truth) + LOSS_ROUNDING["float32"] * abs(loss)
    allowed = 2 * largest(eager - truth) + tiny
    error = largest(ours - truth)
    assert error <= allowed, (
        f"{name}: off by {error:.3g}, allowed {allowed:.3g}, largest {largest(truth):.3g}"
    )
