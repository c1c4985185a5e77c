"""Embeddings in fixed point, so that every dot product is exact.

A matrix product in floating point depends on how its sums are cut into tiles, hence on the block size, on the
number of threads and on the device; two identical references may then differ in the last bit and a tie is
broken by chance. Here each row is rounded to 26 bits relative to its norm (an fp32 number has 24). A product
of two such numbers has 52 bits, and by Cauchy-Schwarz every partial sum of a dot product stays within one
more: all of them are exact in fp64, in any order. What an fp64 matrix product returns is then a function of
the two rows alone.

fp64 rows carry a second slice with the next 18 bits; the four products of slices are exact as well (for D <=
2**19) and are added in one fixed order. Splitting into exactly multipliable slices: Ozaki et al., Numerical
Algorithms 59 (2012), "Error-free transformations of matrix multiplication".
"""

from __future__ import annotations

import torch
from torch import Tensor

from ccp_fast._checks import Normalize

_BITS = 26  # first slice
_LOW_BITS = 18  # second slice, fp64 rows only
_CHUNK = 1 << 20  # elements prepared at a time
# A matrix of at most so many elements keeps its slices (128 MB), a larger one makes them anew.
_KEEP = 1 << 24


def ordered_sum(x: Tensor) -> Tensor:  # [M, W] -> [M]
    """Row sums in one fixed order, whatever the device, the threads or the zeros appended to a row."""
    while x.shape[1] > 1:
        half = 1 << ((x.shape[1] - 1).bit_length() - 1)  # the largest power of two below the width
        low, high = x[:, :half].clone(), x[:, half:]
        low[:, : high.shape[1]] += high
        x = low
    return x.sum(1)


class FixedPointRows:
    """The rows of ``values`` [N, D], normalised and rounded; a large matrix is not copied."""

    def __init__(self, name: str, values: Tensor, normalize: Normalize, *, double: bool) -> None:
        self.values = values.detach()
        self.normalize = normalize
        self.double = double
        rows = max(1, _CHUNK // values.shape[1])
        parts = [_scales(name, start, part, normalize) for start, part in _chunks(self.values, rows)]
        # [N] each: row * factor is rounded to integers; an integer * step, a power of two, is the row again.
        self._factor = torch.cat([factor for factor, _ in parts])
        self._step = torch.cat([step for _, step in parts])
        self._kept: tuple[Tensor, ...] | None = None
        squares = [
            self._squares(slice(start, start + len(part))) for start, part in _chunks(self.values, rows)
        ]
        self.square = torch.cat(squares)  # [N] squared norms
        if values.numel() <= _KEEP:
            self._kept = self.slices(slice(None))

    def __len__(self) -> int:
        return self.values.shape[0]

    @property
    def suits_float32(self) -> bool:
        """Whether float32 holds the rows, their squares and what normalising divides them by."""
        divisor = (self._factor * self._step).reciprocal_()
        fits = ((divisor > 1e-11) & (divisor < 1e30) & (self.square < 1e36)).all()
        return (
            self.values.dtype in (torch.float32, torch.bfloat16, torch.float16)
            and not self.double
            and bool(fits)
        )

    def slices(self, rows: slice | Tensor) -> tuple[Tensor, ...]:
        """Fixed-point slices of some rows, each [rows, D] fp64; their sum is the row."""
        if self._kept is not None:
            return tuple(_take(kept, rows) for kept in self._kept)
        scaled = _take(self.values, rows).to(torch.float64, copy=True).mul_(self._factor[rows, None])
        step = self._step[rows, None]
        if not self.double:
            return (scaled.round_().mul_(step),)
        high = scaled.round()
        low = scaled.sub_(high).mul_(2.0**_LOW_BITS).round_().mul_(2.0**-_LOW_BITS)
        return (high.mul_(step), low.mul_(step))

    def _squares(self, rows: slice) -> Tensor:
        slices = self.slices(rows)
        return _in_order([(a * b).sum(1) for a in slices for b in slices])  # the terms and the order of dots


def dots(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> Tensor:
    """<l_i, r_j> for slices of M and N rows, [M, N] fp64."""
    return _in_order([torch.mm(a, b.T) for a in left for b in right])


def dots_of_pairs(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> Tensor:
    """<l_i, r_ij> for slices [M, D] of M rows and [M, c, D] of c rows for each, [M, c] fp64: the bits of ``dots``."""
    return _in_order([torch.matmul(b, a[:, :, None]).squeeze(2) for a in left for b in right])


def _in_order(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total += term
    return total


def _take(x: Tensor, rows: slice | Tensor) -> Tensor:
    """x[rows], several times as fast where rows are a tensor."""
    return x[rows] if isinstance(rows, slice) else x.index_select(0, rows)


def _chunks(values: Tensor, rows: int) -> list[tuple[int, Tensor]]:
    return [(start, values[start : start + rows]) for start in range(0, len(values), rows)]


def _scales(name: str, start: int, part: Tensor, normalize: Normalize) -> tuple[Tensor, Tensor]:
    square = ordered_sum(part.to(torch.float64, copy=True).square_())
    bad = (~(4.0 * square).isfinite()).nonzero()
    if len(bad):
        row = start + int(bad[0])
        raise ValueError(f"{name}: expected finite embeddings, got NaN, infinity or an overflow in row {row}")
    norm = square.sqrt()
    if normalize is None:
        scaled = torch.zeros_like(norm, dtype=torch.bool)
    else:
        scaled = norm > (1.0 if normalize == "ball" else 0.0)
    # A row brought to length one lies within [-1, 1]; any other within the next power of two above its norm.
    exponent = torch.where(scaled, 0, torch.frexp(norm).exponent)
    step = torch.ldexp(torch.ones_like(norm), exponent - _BITS)
    return torch.where(scaled, norm, 1.0).mul_(step).reciprocal_(), step
