"""Greedy k-center (farthest-point) selection, one segment after another."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ccp_fast._checks import Normalize, at_least, check_one_of, describe
from ccp_fast.reference.pairs import ZERO_NORM, normalise


class FarthestPoints(NamedTuple):
    """Picks and covering radii of every segment."""

    indices: Tensor  # [S, k] int64, rows of the flat points
    radii: Tensor  # [S, k] largest distance of a point of the segment to its nearest centre, after each pick


@torch.no_grad()
def farthest_points(
    points: Tensor,  # [N, D], or [S, n, D] for S segments of n points
    k: int,
    *,
    # [S + 1] int64: segment s is points[offsets[s]:offsets[s + 1]]; None: one segment
    offsets: Tensor | None = None,
    seeds: Tensor | None = None,  # [T, D] with seed_offsets, or [S, t, D]
    seed_offsets: Tensor | None = None,  # [S + 1] int64
    normalize: Normalize = None,
    short: Literal["repeat", "pad"] = "repeat",
) -> FarthestPoints:
    """k times per segment: pick argmax_i min_{s ∈ seeds + picks} ‖x_i − s‖².

    Ties go to the lowest index; a picked point is not picked again. A segment without seeds starts with its
    point of largest norm (what a single seed at the origin would pick), and only the picks are its centres.
    With fewer than k points "repeat" cycles through the picks in order, "pad" gives index −1, both with
    radius 0; an empty segment gives −1 and 0. Indices count rows of the flat points, s·n + i for [S, n, D].
    Raises ValueError for k < 1, NaN, or offsets that do not cut the points into segments.
    """
    at_least("k", k, 1)
    check_one_of("short", short, ("repeat", "pad"))
    flat, cuts = _segments("points", "offsets", points, offsets)
    if seeds is None:
        if seed_offsets is not None:
            raise ValueError("seed_offsets: expected None where seeds is None")
        flat_seeds, seed_cuts = flat[:0], [0] * len(cuts)
    else:
        flat_seeds, seed_cuts = _segments("seeds", "seed_offsets", seeds, seed_offsets)
    if len(seed_cuts) != len(cuts):
        raise ValueError(f"seeds: expected {len(cuts) - 1} segments, as points has, got {len(seed_cuts) - 1}")
    if flat_seeds.shape[1] != flat.shape[1]:
        raise ValueError(f"seeds: expected vectors of {flat.shape[1]} components, got {flat_seeds.shape[1]}")

    wide = torch.promote_types(flat.dtype, torch.float32)
    vectors, centres = normalise(flat.to(wide), normalize), normalise(flat_seeds.to(wide), normalize)
    sizes = _squared_norms(flat.to(wide), normalize)
    indices = torch.full((len(cuts) - 1, k), -1, dtype=torch.int64, device=points.device)
    radii = torch.zeros((len(cuts) - 1, k), dtype=wide, device=points.device)
    for s in range(len(cuts) - 1):
        here = slice(cuts[s], cuts[s + 1])
        seeds_here = centres[seed_cuts[s] : seed_cuts[s + 1]]
        picks, covering = _greedy(vectors[here], sizes[here], seeds_here, k)
        for i in range(k if picks and short == "repeat" else len(picks)):
            indices[s, i] = cuts[s] + picks[i % len(picks)]
        for i, radius in enumerate(covering):
            radii[s, i] = radius
    return FarthestPoints(indices, radii)


def _squared_norms(vectors: Tensor, normalize: Normalize) -> Tensor:
    """Of the normalised vectors, without rounding: on the sphere all are equal."""
    sizes = vectors.square().sum(1)
    if normalize == "ball":
        return sizes.clamp(max=1)
    return (sizes.sqrt() > ZERO_NORM).to(sizes.dtype) if normalize == "unit" else sizes


def _greedy(points: Tensor, sizes: Tensor, seeds: Tensor, k: int) -> tuple[list[int], list[Tensor]]:
    """At most k picks from points [n, D] of squared norms `sizes` [n], and the radius after each."""
    left = torch.ones(len(points), dtype=torch.bool, device=points.device)
    nearest = points.new_full((len(points),), torch.inf)  # squared distance to the nearest centre
    for seed in seeds:
        nearest = torch.minimum(nearest, (points - seed).square().sum(1))
    ranking = nearest if len(seeds) else sizes
    picks: list[int] = []
    radii: list[Tensor] = []
    for _ in range(min(k, len(points))):
        pick = int(ranking.masked_fill(~left, -1.0).argmax())  # the first of equal values
        left[pick] = False
        picks.append(pick)
        nearest = torch.minimum(nearest, (points - points[pick]).square().sum(1))
        radii.append(nearest.max().sqrt())
        ranking = nearest
    return picks, radii


def _segments(name: str, cut_name: str, x: Tensor, offsets: Tensor | None) -> tuple[Tensor, list[int]]:
    """Flat rows and the list of S + 1 boundaries."""
    if x.dim() not in (2, 3) or not x.is_floating_point():
        raise ValueError(f"{name}: expected floating point of 2 or 3 dimensions, got {describe(x)}")
    if bool(x.isnan().any()):
        raise ValueError(
            f"{name}: expected numbers, got NaN in row {int(x.flatten(0, -2).isnan().any(-1).nonzero()[0])}"
        )
    if x.dim() == 3:
        if offsets is not None:
            raise ValueError(f"{cut_name}: expected None for {name} of shape [S, n, D]")
        count, size = x.shape[:2]
        return x.flatten(0, 1), list(range(0, count * size + 1, size)) if size else [0] * (count + 1)
    if offsets is None:
        return x, [0, len(x)]
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or len(offsets) < 1:
        raise ValueError(f"{cut_name}: expected int64 of shape [S + 1], got {describe(offsets)}")
    cuts: list[int] = offsets.tolist()
    if cuts[0] != 0 or cuts[-1] != len(x) or any(a > b for a, b in pairwise(cuts)):
        raise ValueError(f"{cut_name}: expected a sorted list from 0 to {len(x)}, the rows of {name}")
    return x, cuts
