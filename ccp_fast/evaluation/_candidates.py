"""A few candidates for every query from float32 products, among which its exact neighbours are certain to be.

The operator of nearest references is several times as fast as exact products, but it rounds. It is asked for some
more neighbours than wanted; these are then ranked exactly. What it left out is, by its own count, no nearer than
its last candidate. If the k-th exact distance lies below that one's by more than rounding explains, the exact
neighbours are all there; if not, which takes ties or a collapsed network, the query is ranked among all references.

How far a squared distance can be off, with u = 2⁻²⁴, D components, s = ‖q‖ + ‖r‖ of the normalised rows and d
their distance (γ_n = n·u to first order: Higham, "Accuracy and Stability of Numerical Algorithms", ch. 3):

- the operator's ‖q‖² + ‖r‖² − 2<q, r>, from products and sums rounded one by one in any order: (D + 3)·u·s².
  Closer than an eighth of the rows' own size it takes rounded differences: (D + 3)·u·d²
- the rows it normalises, against the exact ones: a length from D squares (D/2·u), its reciprocal and the product
  with it (2u), and the rounding of the fixed-point rows (√D/4·u), together e = (D/2 + 2 + √D/4)·u·s. That moves
  a squared distance by 2·d·e + e²
- the root it returns, squared again: 4u·d²

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
    nearest, farthest = reference.square.min(), reference.square.max()
    size = query.square[rows].sqrt() + farthest.sqrt()
    last = distances[:, -1].to(torch.float64)
    by_products = _error(query.values, size, size)
    by_differences = last.square() <= (query.square[rows] + nearest) / 64 - 2 * by_products
    error = torch.where(by_differences, _error(query.values, size, last), by_products)
    bound = last.square() - error - query.values.shape[1] * 2.0**-120
    return indices.sort(dim=1).values, bound


def _error(values: Tensor, size: Tensor, distance: Tensor) -> Tensor:
    """Of a squared distance, for rows of lengths that add up to ``size``."""
    u = 2.0**-24 if values.device.type == "cpu" else _TENSOR_CORES * 2.0**-24
    dim = values.shape[1]
    moved = (dim / 2 + 2 + math.sqrt(dim) / 4) * u * size
    return 1.125 * ((dim + 7) * u * distance.square() + (2 * distance + moved) * moved)
