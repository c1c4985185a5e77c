"""The k nearest references of every query, exact, streamed.

Either among a few candidates, where these hold them for certain (`_candidates`), or over blocks of queries and of
references, all of whose products are exact. The result has the same bits.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast._checks import Normalize, check_normalize, check_one_of

from . import _candidates, _checks
from ._candidates import BACKENDS, Backend, Candidates
from ._fixed_point import FixedPointRows, dots, dots_of_pairs

BlockSize = tuple[int, int] | None

_TILE = {"cpu": 1 << 22, "other": 1 << 26}  # fp64 elements of a tile of distances: 32 MB, 512 MB
_COLUMNS = {"cpu": 4096, "other": 65536}
_TRIAL = 256  # queries that tell whether candidates are of use


class Nearest(NamedTuple):
    """Neighbours of each query, the nearest first."""

    indices: Tensor  # [M, k] int64, rows of the reference
    distances: Tensor  # [M, k] Euclidean, fp32 (fp64 for fp64 embeddings)


class RankedBlock(NamedTuple):
    """The neighbours of some queries."""

    rows: Tensor  # [B] int64, which queries
    indices: Tensor  # [B, k] int64
    squares: Tensor  # [B, k] fp64, squared distances


@torch.no_grad()
def nearest(
    query: Tensor,
    k: int,
    reference: Tensor | None = None,
    *,
    normalize: Normalize = "unit",
    block_size: BlockSize = None,
    backend: Backend = "ccp_fast",
) -> Nearest:
    """The ``k`` nearest references of every query by Euclidean distance.

    Exact, and ordered by (distance, index): of two references at the same distance the lower index comes
    first. The result does not depend on ``block_size``, the number of threads or the device. Distances are
    those of the rows rounded to 26 bits relative to their norm (44 for fp64), finer than fp32 arithmetic;
    equal rows are at distance 0.

    Args:
        query: [M, D] floating point.
        k: number of neighbours, at most the number of references (less one if ``reference`` is None).
        reference: [N, D]; None: the queries themselves, each leaving out itself (by its index: a duplicate
            stays).
        normalize: "unit" v/‖v‖ (the order of cosine similarity, which is 1 - d²/2), "ball" v/max(1,‖v‖), or
            None.
        block_size: queries and references per tile of exact distances, of which no candidates are then picked
            beforehand; None: chosen for the device, in 32 MB on the CPU, 512 MB elsewhere.
        backend: who looks for candidates, which are then ranked exactly: this package's operator, or "faiss" (a
            flat index on the CPU, with a copy of the references in fp32; extra [faiss]). The result is the same.

    Returns:
        ``Nearest(indices [M, k] int64, distances [M, k])``.

    Raises:
        ValueError: empty or non-finite embeddings, shapes, dtypes or devices that do not fit, k out of range.
        ModuleNotFoundError: "faiss" where it is not installed.
    """
    q, r = prepare(query, reference, normalize)
    most = len(r) - (reference is None)
    if not 1 <= k <= most:
        raise ValueError(f"k: expected 1 to {most}, the number of references of a query, got {k}")
    device = query.device
    indices = torch.empty(len(q), k, dtype=torch.int64, device=device)
    distances = torch.empty(len(q), k, dtype=torch.float64 if q.double else torch.float32, device=device)
    rows = torch.arange(len(q), device=device)
    depth = torch.full_like(rows, k)
    for block in ranked_blocks(q, r, rows, depth, reference is None, block_size, backend):
        indices[block.rows] = block.indices
        distances[block.rows] = block.squares.sqrt().to(distances.dtype)
    return Nearest(indices, distances)


def prepare(
    query: Tensor, reference: Tensor | None, normalize: Normalize
) -> tuple[FixedPointRows, FixedPointRows]:
    """Check the embeddings and bring them to fixed point."""
    _checks.embeddings("query", query)
    check_normalize(normalize)
    double = query.dtype == torch.float64
    if reference is None:
        q = FixedPointRows("query", query, normalize, double=double)
        return q, q
    _checks.embeddings("reference", reference, like=query)
    double = double or reference.dtype == torch.float64
    q = FixedPointRows("query", query, normalize, double=double)
    return q, FixedPointRows("reference", reference, normalize, double=double)


def ranked_blocks(
    query: FixedPointRows,
    reference: FixedPointRows,
    rows: Tensor,
    k: Tensor,
    exclude_self: bool,
    block_size: BlockSize = None,
    backend: Backend = "ccp_fast",
) -> Iterator[RankedBlock]:
    """Rank the queries ``rows`` [B] with at least ``k`` [B] neighbours each.

    Queries of similar k share a block (within a factor of two), so that the few members of a huge class,
    which ask for thousands of neighbours, do not make all the others pay for as many. Blocks come in order of
    k, not of rows.
    """
    check_one_of("backend", backend, tuple(BACKENDS))
    candidates = None
    if block_size is None:
        candidates = BACKENDS[backend](query, reference)
    else:
        _checks.block_size(block_size)
    order = k.argsort(stable=True)
    rows, k = rows[order], k[order].cpu()
    start = 0
    while start < len(rows):
        most = max(8, 2 * int(k[start]))
        stop = int(torch.searchsorted(k, most, right=True))
        widest = int(k[stop - 1])
        left = rows[start:stop]
        if candidates is not None:
            left = yield from _rank_candidates(query, reference, left, widest, exclude_self, candidates)
        height, width = block_size or _tile(widest, len(reference), left.device)
        for first in range(0, len(left), height):
            yield _rank(query, reference, left[first : first + height], widest, exclude_self, width)
        start = stop


def _kind(device: torch.device) -> str:
    return "cpu" if device.type == "cpu" else "other"


def _tile(k: int, references: int, device: torch.device) -> tuple[int, int]:
    width = min(references, max(_COLUMNS[_kind(device)], 4 * k))
    return max(16, _TILE[_kind(device)] // width), width


def _rank_candidates(
    query: FixedPointRows,
    reference: FixedPointRows,
    rows: Tensor,
    k: int,
    exclude_self: bool,
    candidates: Candidates,
) -> Generator[RankedBlock, None, Tensor]:
    """Rank the queries of which a few candidates hold the k nearest for certain; return the others."""
    count = _candidates.count(k, exclude_self)
    if not candidates.are_worth_it(count):
        return rows
    tile, dim = _TILE[_kind(rows.device)], query.values.shape[1]
    height, piece = max(1, tile // max(count, dim)), max(1, tile // (4 * count * dim))
    uncertain, done = rows[:0], 0
    while done < len(rows) and 2 * len(uncertain) <= done:  # most are certain so far
        some = rows[done : done + (height if done else _TRIAL)]
        indices, bound = candidates.find(some, count)
        for part, columns, below in zip(
            some.split(piece), indices.split(piece), bound.split(piece), strict=True
        ):
            block = _rank_among(query, reference, part, columns, k, exclude_self)
            certain = block.squares[:, -1] < below
            yield RankedBlock(*(x[certain] for x in block))
            uncertain = torch.cat([uncertain, part[~certain]])
        done += len(some)
    return torch.cat([uncertain, rows[done:]])


def _rank_among(
    query: FixedPointRows,
    reference: FixedPointRows,
    rows: Tensor,
    columns: Tensor,
    k: int,
    exclude_self: bool,
) -> RankedBlock:
    """As ``_rank``, if no other references are there than each query's ``columns`` [B, c], ascending."""
    minus_twice = tuple(-2.0 * part for part in query.slices(rows))
    others = tuple(part.view(*columns.shape, -1) for part in reference.slices(columns.flatten()))
    scores = dots_of_pairs(minus_twice, others).add_(reference.square[columns])
    if exclude_self:
        scores.masked_fill_(columns == rows[:, None], torch.inf)
    scores, order = scores.sort(dim=1, stable=True)
    return _block(query, rows, columns.gather(1, order)[:, :k], scores[:, :k])


def _rank(
    query: FixedPointRows, reference: FixedPointRows, rows: Tensor, k: int, exclude_self: bool, width: int
) -> RankedBlock:
    minus_twice = tuple(-2.0 * part for part in query.slices(rows))  # exact: a power of two
    indices = rows.new_empty(len(rows), 0)
    scores = query.square.new_empty(len(rows), 0)
    for start in range(0, len(reference), width):
        part = slice(start, min(start + width, len(reference)))
        # ‖r‖² - 2<q, r>: the squared distance less ‖q‖², which is the same along a row
        tile = dots(minus_twice, reference.slices(part)).add_(reference.square[part])
        if exclude_self:
            own = ((rows >= part.start) & (rows < part.stop)).nonzero().squeeze(1)
            tile[own, rows[own] - part.start] = torch.inf
        columns = _smallest(tile, min(k, tile.shape[1]))
        # What is already there has lower indices than this tile, so a stable sort orders by (score, index).
        indices = torch.cat([indices, columns + start], dim=1)
        scores, order = torch.cat([scores, tile.gather(1, columns)], dim=1).sort(dim=1, stable=True)
        indices, scores = indices.gather(1, order)[:, :k], scores[:, :k]
    return _block(query, rows, indices, scores)


def _block(query: FixedPointRows, rows: Tensor, indices: Tensor, scores: Tensor) -> RankedBlock:
    """Scores lack ‖q‖² yet."""
    return RankedBlock(rows, indices, scores.add(query.square[rows, None]).clamp_(min=0.0))


def _smallest(tile: Tensor, k: int) -> Tensor:
    """Columns of the k smallest entries of each row, ascending [B, k]; of equal entries the first."""
    if k == tile.shape[1]:
        return torch.arange(k, device=tile.device).expand(tile.shape[0], k)
    values, columns = tile.topk(k + 1, dim=1, largest=False)
    columns = columns[:, :k].sort(dim=1).values
    # topk takes any of the entries equal to the k-th: where one of them was left out, choose again.
    tied = (values[:, k - 1] == values[:, k]).nonzero().squeeze(1)
    if len(tied):
        part, bound = tile[tied], values[tied, k - 1 : k]
        below, equal = part < bound, part == bound
        taken = below | (equal & (equal.cumsum(1) <= k - below.sum(1, keepdim=True)))
        columns[tied] = taken.nonzero()[:, 1].view(len(tied), k)
    return columns
