"""From the parts of the rows to the loss."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ccp_fast._checks import Reduction


class Count(NamedTuple):
    """What the positive and the negative part are divided by; a constant for autograd."""

    positive: Tensor | int
    negative: Tensor | int


class RowParts(NamedTuple):
    """What a loss says about its rows."""

    positive: Tensor  # [R] value of the positive pairs (of all pairs where a loss does not come apart)
    negative: Tensor  # [R] value of the negative pairs
    active: Count  # divisors of `active_mean`: the terms, or rows, that take part
    total: Count  # divisors of `mean`: all terms, or rows


def reduce(parts: RowParts, reduction: Reduction) -> Tensor:
    """none: [R]; sum: over the rows; anchor_mean: sum / R; mean, active_mean: each part over its count."""
    rows = parts.positive + parts.negative
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if reduction == "anchor_mean":
        return rows.sum() / max(len(rows), 1)
    if reduction in ("mean", "active_mean"):
        count = parts.total if reduction == "mean" else parts.active
        return _divide(parts.positive.sum(), count.positive) + _divide(parts.negative.sum(), count.negative)
    raise ValueError(
        f'reduction: expected "active_mean", "mean", "anchor_mean", "sum" or "none", got {reduction!r}'
    )


def _divide(value: Tensor, count: Tensor | int) -> Tensor:
    """A sum of no terms is 0, and so is its mean."""
    return value / (count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1))
