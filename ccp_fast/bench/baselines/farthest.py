"""Farthest-point sampling of other libraries.

They have no seeds from outside: they start at a given point. k picks from there are the same work as ours with that
point as the seed and k − 1 picks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Sampler = Callable[[Tensor, int], Tensor]  # points [S, n, D], k -> picks [S, k], beginning with point 0


def torch_cluster() -> Sampler:
    """torch_cluster.fps: a block for each segment."""
    from torch_cluster import fps  # type: ignore[import]

    def sample(points: Tensor, k: int) -> Tensor:
        segments, size, dim = points.shape
        cuts = torch.arange(segments + 1, device=points.device) * size
        # ceil(ratio · n) picks: the half keeps rounding out of it
        picks: Tensor = fps(points.view(-1, dim), ratio=(k - 0.5) / size, random_start=False, ptr=cuts)
        return picks.view(segments, k) - cuts[:-1, None]

    return sample


def torch_fps() -> Sampler:
    """torch-fps: Triton, a program for each segment."""
    from torch_fps import farthest_point_sampling  # type: ignore[import]

    def sample(points: Tensor, k: int) -> Tensor:
        valid = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
        picks: Tensor = farthest_point_sampling(
            points, valid, k, random_start=False, validate=False, assume_finite=True
        )
        return picks

    return sample


def torch_quickfps(buckets: bool) -> Callable[[], Sampler]:
    """torch-quickfps: with its k-d tree of buckets, or its plain kernel."""

    def make() -> Sampler:
        from torch_quickfps import sample_idx, sample_idx_baseline  # type: ignore[import]

        function = sample_idx if buckets else sample_idx_baseline
        return lambda points, k: function(points, k, start_idx=0)

    return make


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "torch_cluster": torch_cluster,
    "torch-fps": torch_fps,
    "torch-quickfps": torch_quickfps(buckets=True),
    "torch-quickfps, plain": torch_quickfps(buckets=False),
}
