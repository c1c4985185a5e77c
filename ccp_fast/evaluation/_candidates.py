"""A few candidates for every query from float32 products, among which its exact neighbours are certain to be.

The operator of nearest references is several times as fast as exact products, but it rounds. It is asked for some
more neighbours than wanted; these are then ranked exactly. What it left out is, by its own count, no nearer than
its last candidate. If the k-th exact distance lies below that one's by more than rounding explains, the exact
neighbours are all there; if not, which takes ties or a collapsed network, the query is ranked among all references.

How far a squared distance can be off, with u = 2⁻²⁴, D components and s = ‖q‖ + ‖r‖ of the normalised rows
(γ_n = n·u to first order: Higham, "Accuracy and Stability of Numerical Algorithms", ch. 3):

- the operator's ‖q‖² + ‖r‖² − 2<q, r>, from products and sums rounded one by one in any order, or from rounded
  differences: (D + 3)·u·s²
- the rows it normalises, against the exact ones: a length from D squares (D/2·u), its reciprocal and the product
  with it (2u); the fixed-point rows (√D/4·u). Of a squared distance twice as much: (D + 4 + √D/2)·u·s²
- the root it returns, squared again: 4u·s²

Second-order terms are below an eighth for D <= 2¹⁷. Underflow adds less than D·2⁻¹²⁰.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ccp_fast.ops.nearest_references import nearest_references

from ._fixed_point import FixedPointRows

_MOST_COMPONENTS = 1 << 17
_WORTH = 20  # ranking a candidate exactly costs as much as so many references in a matrix product
# Tensor cores cut off where a CPU rounds, and leave 2⁻²² of a factor out of three tf32 products.
_TENSOR_CORES = 8


def count(k: int, exclude_self: bool) -> int:
    """How many candidates to ask for, for k neighbours: the last of them is to lie clear of the k-th."""
    return k + k // 16 + 2 + int(exclude_self)


def are_worth_it(query: FixedPointRows, reference: FixedPointRows, candidates: int) -> bool:
    """Whether the bound holds for these rows, and so few candidates save time."""
    return (
        _has_kernel(query.values.device)
        and candidates * _WORTH <= len(reference)
        and query.values.shape[1] <= _MOST_COMPONENTS
        and query.suits_float32
        and reference.suits_float32
    )


def _has_kernel(device: torch.device) -> bool:
    """Evaluation runs on any device of torch's, and without this package's CUDA kernels."""
    return device.type == "cpu" or (
        device.type == "cuda" and "cuda_missing=" not in torch.ops.ccp_fast.build_info()
    )


def find(
    query: FixedPointRows, reference: FixedPointRows, rows: Tensor, candidates: int
) -> tuple[Tensor, Tensor]:
    """For the queries ``rows`` [B]: candidates [B, c] int64, ascending, and a bound [B] fp64.

    The exact squared distance of any reference that is no candidate is above the bound.
    """
    indices, distances = nearest_references(
        query.values.index_select(0, rows),
        reference.values,
        candidates,
        query.normalize or "none",
        False,
        False,
    )
    size = query.square[rows].sqrt() + reference.square.max().sqrt()
    bound = distances[:, -1].to(torch.float64).square() - _error(query.values) * size.square()
    return indices.sort(dim=1).values, bound - query.values.shape[1] * 2.0**-120


def _error(values: Tensor) -> float:
    """Of a squared distance, as a part of (‖q‖ + ‖r‖)²."""
    dim = values.shape[1]
    on_cpu = 1.125 * (2 * dim + math.sqrt(dim) / 2 + 11) * 2.0**-24
    return on_cpu if values.device.type == "cpu" else _TENSOR_CORES * on_cpu
