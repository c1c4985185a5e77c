"""A few candidates for every query from float32 products, among which its exact neighbours are certain to be.

The operator of nearest references is several times as fast as exact products, but it rounds; so does faiss. Either is
asked for some more neighbours than wanted; these are then ranked exactly. What it left out is, by its own count, no
nearer than its last candidate. If the k-th exact distance lies below that one's by more than rounding explains, the
exact neighbours are all there; if not, which takes ties or a collapsed network, the query is ranked among all
references.

How far a squared distance can be off, with u = 2⁻²⁴, D components, s = ‖q‖ + ‖r‖ of the normalised rows and d
their distance (γ_n = n·u to first order: Higham, "Accuracy and Stability of Numerical Algorithms", ch. 3):

- the operator's ‖q‖² + ‖r‖² − 2<q, r>, from products and sums rounded one by one in any order: (D + 3)·u·s².
  Closer than an eighth of the rows' own size it takes rounded differences: (D + 3)·u·d²
- the rows it normalises, against the exact ones: a length from D squares (D/2·u), its reciprocal and the product
  with it (2u), and the rounding of the fixed-point rows (√D/4·u), together e = (D/2 + 2 + √D/4)·u·s. That moves
  a squared distance by 2·d·e + e²
- the root it returns, squared again: 4u·d²

faiss returns squares of products and never roots, or of differences where queries are few, and is given the exact
rows rounded once (u·s): both are less than what is allowed for.

Second-order terms are below an eighth for D <= 2¹⁷. Underflow adds less than D·2⁻¹²⁰.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from ccp_fast.ops.nearest_references import nearest_references

from ._fixed_point import FixedPointRows

Backend = Literal["ccp_fast", "faiss"]

_MOST_COMPONENTS = 1 << 17
_WORTH = 20  # ranking a candidate exactly costs as much as so many references in a matrix product
# Tensor cores cut off where a CPU rounds, and leave 2⁻²² of a factor out of three tf32 products.
_TENSOR_CORES = 8
_CHUNK = 1 << 20  # elements handed to faiss at a time


def count(k: int, exclude_self: bool) -> int:
    """How many candidates to ask for, for k neighbours: the last of them is to lie clear of the k-th."""
    return k + k // 16 + 2 + int(exclude_self)


class Candidates:
    """From this package's operator."""

    def __init__(self, query: FixedPointRows, reference: FixedPointRows) -> None:
        self._query, self._reference = query, reference
        self._shortest, self._longest = reference.square.min(), reference.square.max()
        self._suitable = (
            self._has_kernel(query.values.device)
            and query.values.shape[1] <= _MOST_COMPONENTS
            and query.suits_float32
            and reference.suits_float32
        )

    def are_worth_it(self, candidates: int) -> bool:
        """Whether the bound holds for these rows, and so few candidates save time."""
        return self._suitable and candidates * _WORTH <= len(self._reference)

    def find(self, rows: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
        """For the queries ``rows`` [B]: candidates [B, c] int64, ascending, and a bound [B] fp64.

        The exact squared distance of any reference that is no candidate is above the bound.
        """
        indices, last, by_differences = self._search(rows, candidates)
        dim = self._query.values.shape[1]
        size = self._size(rows)
        error = torch.where(
            by_differences,
            _error(self._query.values, size, last.sqrt()),
            _error(self._query.values, size, size),
        )
        return indices.sort(dim=1).values, last - error - dim * 2.0**-120

    def _search(self, rows: Tensor, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
        """Indices [B, c], the largest squared distance [B] fp64, whether that is a sum of squared differences."""
        indices, distances = nearest_references(
            self._query.values.index_select(0, rows),
            self._reference.values,
            candidates,
            self._query.normalize or "none",
            False,
            False,
        )
        last = distances[:, -1].to(torch.float64).square()
        size = self._size(rows)
        near = (self._query.square[rows] + self._shortest) / 64
        return indices, last, last <= near - 2 * _error(self._query.values, size, size)

    def _size(self, rows: Tensor) -> Tensor:
        """Lengths of a query and of the longest reference, together [B] fp64."""
        return self._query.square[rows].sqrt() + self._longest.sqrt()

    @staticmethod
    def _has_kernel(device: torch.device) -> bool:
        """Evaluation runs on any device of torch's, and without this package's CUDA kernels."""
        return device.type == "cpu" or (
            device.type == "cuda" and "cuda_missing=" not in torch.ops.ccp_fast.build_info()
        )


class FaissCandidates(Candidates):
    """From a flat index of faiss on the CPU, which holds the references once more, normalised, in float32."""

    def __init__(self, query: FixedPointRows, reference: FixedPointRows) -> None:
        if query.values.device.type != "cpu":
            raise ValueError(f"backend: expected embeddings on the CPU for faiss, got {query.values.device}")
        try:
            import faiss
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'backend: "faiss" is not installed; pip install "ccp-fast[faiss]"'
            ) from error
        super().__init__(query, reference)
        if self._suitable:
            dim = reference.values.shape[1]
            self._index = faiss.IndexFlatL2(dim)
            for part in torch.arange(len(reference)).split(max(1, _CHUNK // dim)):
                self._index.add(_rounded(reference, part).numpy())

    def _search(self, rows: Tensor, candidates: int) -> tuple[Tensor, Tensor, Tensor]:
        squares, indices = self._index.search(_rounded(self._query, rows).numpy(), candidates)
        last = torch.from_numpy(squares)[:, -1].to(torch.float64)
        return torch.from_numpy(indices), last, torch.zeros_like(last, dtype=torch.bool)


def _rounded(x: FixedPointRows, rows: Tensor) -> Tensor:
    """Exact rows in float32."""
    return x.slices(rows)[0].to(torch.float32)


BACKENDS: dict[Backend, type[Candidates]] = {"ccp_fast": Candidates, "faiss": FaissCandidates}


def _error(values: Tensor, size: Tensor, distance: Tensor) -> Tensor:
    """Of a squared distance, for rows of lengths that add up to ``size``."""
    u = 2.0**-24 if values.device.type == "cpu" else _TENSOR_CORES * 2.0**-24
    dim = values.shape[1]
    moved = (dim / 2 + 2 + math.sqrt(dim) / 4) * u * size
    return 1.125 * ((dim + 7) * u * distance.square() + (2 * distance + moved) * moved)
