"""Greedy k-center (farthest-point) selection over many segments at once."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ccp_fast._checks import Normalize, at_least, check_normalize, check_one_of, check_vectors, describe
from ccp_fast.ops import farthest_points as op
from ccp_fast.reference.selection import FarthestPoints

__all__ = ["FarthestPoints", "farthest_points"]


def farthest_points(
    points: Tensor,
    k: int,
    *,
    offsets: Tensor | None = None,
    seeds: Tensor | None = None,
    seed_offsets: Tensor | None = None,
    normalize: Normalize = None,
    short: Literal["repeat", "pad"] = "repeat",
) -> FarthestPoints:
    """Pick k points of every segment, each the farthest from the centres so far.

    k times argmax_i min_{c ∈ S} ‖x_i − c‖², where S starts as the segment's seeds and every pick joins it.
    Without seeds the first pick is the point of largest norm, after `normalize`: vectors on the sphere are
    equal, so "unit" begins with the first that is not zero. Ties go to the lowest index; a picked point is
    not picked again while another is left.

    Args:
        points: [N, D] cut into segments by `offsets` (None: one segment), or [S, n, D], a segment each.
            float32, float64, bfloat16 or float16; computed in float32, or in float64 for float64.
        k: picks per segment, at least 1.
        offsets: [S + 1] int64; segment s is points[offsets[s]:offsets[s + 1]].
        seeds: [S, t, D], or [T, D] cut into S segments by `seed_offsets`; of any of these dtypes.
        seed_offsets: [S + 1] int64.
        normalize: compare v/‖v‖ ("unit"; zero stays zero), v/max(1, ‖v‖) ("ball") or v itself (None), also of
            the seeds.
        short: what follows the picks of a segment with fewer than k points: the same picks again in order
            ("repeat") or −1 ("pad"). An empty segment gives −1 either way.

    Returns:
        indices [S, k] int64: rows of the points as [N, D], that is s·n + i for points [S, n, D].
        radii [S, k] float32, or float64 for float64 points: the largest distance of a point of the segment to
        its nearest centre once that pick has joined; 0 behind the last pick of a short segment.
        Neither has a gradient.

    Indices and radii are the same bits for any number of threads and any instruction set. Distances are sums
    of squared differences and never cancel; infinite components of the same sign are no distance apart. Time
    is O(N·D·(seeds + k)) at most, memory beyond the result O(N).

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value.
        RuntimeError: what only the values tell: NaN, infinity where `normalize` is given, offsets that do not
            rise from 0 to N. A GPU is not waited for: there a point that holds NaN is picked after all others,
            and offsets that do not fit are not reported.

    Source: Gonzalez 1985, "Clustering to minimize the maximum intercluster distance"; the choice of proxies
    in arXiv 2209.09060.
    """
    at_least("k", k, 1)
    check_normalize(normalize)
    check_one_of("short", short, ("repeat", "pad"))
    flat, cuts = _segments("points", points, "offsets", offsets, points)
    flat_seeds = seed_cuts = None
    if seeds is not None:
        flat_seeds, seed_cuts = _segments("seeds", seeds, "seed_offsets", seed_offsets, points)
        if seed_cuts.shape != cuts.shape:
            raise ValueError(
                f"seeds: expected {len(cuts) - 1} segments, as points has, got {len(seed_cuts) - 1}"
            )
        if flat_seeds.shape[1] != flat.shape[1]:
            raise ValueError(
                f"seeds: expected vectors of {flat.shape[1]} components, got {flat_seeds.shape[1]}"
            )
    elif seed_offsets is not None:
        raise ValueError("seed_offsets: expected None where seeds is None")
    indices, radii = op.farthest_points(
        flat, cuts, flat_seeds, seed_cuts, k, normalize or "none", short == "pad"
    )
    return FarthestPoints(indices, radii)


def _segments(
    name: str, x: Tensor, cut_name: str, offsets: Tensor | None, points: Tensor
) -> tuple[Tensor, Tensor]:
    """Vectors [N, D] and boundaries [S + 1]."""
    check_vectors(name, x, "[N, D] or [S, n, D]", 2, 3)
    if x.device != points.device:
        raise ValueError(f"{name}: expected device {points.device}, that of points, got {x.device}")
    if x.dim() == 3:
        if offsets is not None:
            raise ValueError(f"{cut_name}: expected None for {name} of 3 dimensions")
        segments, size = x.shape[:2]
        return x.flatten(0, 1), torch.arange(segments + 1, device=x.device) * size
    if offsets is None:
        return x, torch.arange(2, device=x.device) * x.shape[0]
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or len(offsets) < 1:
        raise ValueError(f"{cut_name}: expected int64 of shape [S + 1], got {describe(offsets)}")
    if offsets.device != x.device:
        raise ValueError(f"{cut_name}: expected device {x.device}, that of {name}, got {offsets.device}")
    return x, offsets
