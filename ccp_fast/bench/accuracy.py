"""Errors against float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast.bench.case import Outputs


class Errors(NamedTuple):
    """Largest differences, each relative to the largest number of the true tensor."""

    value: float  # of the first output: a loss's value
    gradient: float | None  # the worst of the others; None where there are none


def errors(outputs: Outputs, truth: Outputs) -> Errors:
    """Compare a step's results with the true ones; a NaN counts as infinite."""
    each = [_relative(output, true) for output, true in zip(outputs, truth, strict=True)]
    return Errors(each[0], max(each[1:]) if len(each) > 1 else None)


def _relative(output: Tensor, true: Tensor) -> float:
    # In one copy: gradients of ten million proxies take gigabytes.
    difference = output.detach().to(torch.float64, copy=True).sub_(true).abs_().amax()
    largest = torch.linalg.vector_norm(true, torch.inf)
    error = float(difference / largest.clamp(min=torch.finfo(torch.float64).tiny))
    return error if error == error else float("inf")
