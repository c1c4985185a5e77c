"""k-center, projections and retrieval in eager PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def k_center_loop(points: Tensor, seeds: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """All segments at once, every pick measuring its distance to all points of its segment.

    points [S, n, D], seeds [S, t, D] -> indices [S, k] within the segment, radii [S, k].
    """
    product = torch.bmm(points, seeds.mT)
    squares = points.square().sum(2, keepdim=True) + seeds.square().sum(2)[:, None] - 2 * product
    return _greedy(points, squares.amin(2), k, None)


def k_center_table(points: Tensor, seeds: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same, from one product per segment: all distances first, then picks that only look them up."""
    others = torch.cat([seeds, points], 1)
    squares = torch.baddbmm(others.square().sum(2)[:, None], points, others.mT, alpha=-2)
    squares += points.square().sum(2, keepdim=True)
    t = seeds.shape[1]
    return _greedy(points, squares[:, :, :t].amin(2), k, squares[:, :, t:])


def _greedy(points: Tensor, nearest: Tensor, k: int, table: Tensor | None) -> tuple[Tensor, Tensor]:
    """nearest [S, n]: squares of the distances to the nearest seed; table [S, n, n]: of all distances."""
    segment = torch.arange(len(points), device=points.device)
    picked = torch.zeros_like(nearest)  # −∞ where a point has been picked
    picks, radii = [], []
    for _ in range(k):
        pick = (nearest + picked).argmax(1)
        picked[segment, pick] = -torch.inf
        if table is None:
            to_pick = (points - points[segment, pick][:, None]).square_().sum(2)
        else:
            to_pick = table[segment, :, pick]
        nearest = torch.minimum(nearest, to_pick)
        picks.append(pick)
        radii.append(nearest.amax(1))
    return torch.stack(picks, 1), torch.stack(radii, 1).clamp_(min=0).sqrt_()


def covering_radius(points: Tensor, picks: Tensor) -> Tensor:
    """The largest distance of a point to its nearest pick: points [S, n, D], picks [S, k] -> [S]."""
    nearest = points.new_full(points.shape[:2], torch.inf)
    segment = torch.arange(len(points), device=points.device)
    for pick in picks.unbind(1):
        torch.minimum(nearest, (points - points[segment, pick][:, None]).square_().sum(2), out=nearest)
    return nearest.amax(1).sqrt_()


def projection_foreach(grads: list[Tensor], params: list[Tensor], previous: list[Tensor], lam: float) -> None:
    """grads += lam·params, then grads −= lam·previous: six passes over memory, without the penalty."""
    torch._foreach_add_(grads, params, alpha=lam)
    torch._foreach_add_(grads, previous, alpha=-lam)


def projection_each(grads: list[Tensor], params: list[Tensor], previous: list[Tensor], lam: float) -> None:
    """The same one parameter after the other, so that the second addition finds the gradient in the cache."""
    for grad, param, before in zip(grads, params, previous, strict=True):
        grad.add_(param, alpha=lam).add_(before, alpha=-lam)


def retrieval(embeddings: Tensor, labels: Tensor, most: int, block: int = 1024) -> Tensor:
    """P@1, R-precision and MAP@R of unit embeddings, [3] float64 on the CPU.

    No class has more than most + 1 members.
    """
    device = embeddings.device
    counts = torch.bincount(labels)
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    ranks = torch.arange(1, most + 1, device=device)
    for start in range(0, len(embeddings), block):
        rows = torch.arange(start, min(start + block, len(embeddings)), device=device)
        s = embeddings[rows] @ embeddings.T
        s[rows - start, rows] = -torch.inf
        hits = labels[s.topk(most).indices] == labels[rows, None]
        relevant = counts[labels[rows]][:, None] - 1
        counted = (hits & (ranks <= relevant)).double()
        precision = counted.cumsum(1) / ranks * counted
        totals += torch.stack(
            [hits[:, 0].double().sum(), (counted / relevant).sum(), (precision / relevant).sum()]
        )
    return (totals / len(embeddings)).cpu()
