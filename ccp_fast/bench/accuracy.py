"""Errors against float64, and what they may be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast.bench.case import Outputs, Precision

# What an error may be beyond twice that of eager PyTorch, which may be lucky: another order of summation and the
# rounding of logits of 64; one product of factors of 11 bits; results of 8 bits.
TINY: dict[Precision, float] = {"float32": 5e-6, "tf32": 1e-3, "bfloat16": 2**-8}


class Errors(NamedTuple):
    """Largest differences, each relative to the largest number of the true tensor."""

    value: float  # of the first output: a loss's value
    gradient: float | None  # the worst of the others; None where there are none


def errors(outputs: Outputs, truth: Outputs, undecided: Outputs | None = None) -> Errors:
    """Compare a step's results with the true ones; a NaN counts as infinite.

    Differences of up to `undecided`, a number for each vector, are none.
    """
    allowed: Sequence[Tensor | None] = [None] * len(truth) if undecided is None else undecided
    each = [_relative(*tensors) for tensors in zip(outputs, truth, allowed, strict=True)]
    return Errors(each[0], max(each[1:]) if len(each) > 1 else None)


def beyond_budget(ours: Errors | None, eager: Errors | None, precision: Precision) -> str | None:
    """Why errors are too large, in one sentence; None: at most twice those of eager PyTorch and a little more."""
    if ours is None:
        return "its results were compared with nothing"
    for name, found, usual in zip(Errors._fields, ours, eager or (0.0, 0.0), strict=True):
        budget = 2 * (usual or 0.0) + TINY[precision]
        if found is not None and not found <= budget:
            return f"its {name} is off by {found:.2g} of the largest number, expected at most {budget:.2g}"
    return None


def _relative(output: Tensor, true: Tensor, undecided: Tensor | None) -> float:
    # In one copy: gradients of ten million proxies take gigabytes.
    difference = output.detach().to(torch.float64, copy=True).sub_(true).abs_()
    if undecided is not None:
        difference = (difference.amax(-1) if difference.dim() else difference) - undecided
    largest = torch.linalg.vector_norm(true, torch.inf)
    error = float(difference.amax().clamp(min=0) / largest.clamp(min=torch.finfo(torch.float64).tiny))
    return error if error == error else float("inf")
