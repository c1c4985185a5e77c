"""Proxies from a pool by k-center, and what a set of proxies covers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast import functional as F
from ccp_fast._checks import Normalize
from ccp_fast.alternating.pool import EmbeddedPool
from ccp_fast.reference.pairs import normalise

_EXACT = "donot_use_mm_for_euclid_dist"  # ‖x‖² + ‖y‖² − 2xy is not 0 where x and y are equal


class Choice(NamedTuple):
    """New proxies of every class."""

    proxies: Tensor  # [C, K, D]
    kept: int  # classes absent from the pool: their proxies are the old ones


@torch.no_grad()
def choose_proxies(pool: EmbeddedPool, old: Tensor, seeds: Tensor | None, normalize: Normalize) -> Choice:
    """The K embeddings of each class that k-center picks, in its order: the first ones cover most.

    old [C, K, D]: proxies of the classes that the pool lacks; seeds [C, t, D]. Distances are between vectors
    normalised as `normalize` says; the proxies are the embeddings as they are.
    """
    picks = F.farthest_points(
        pool.embeddings,
        old.shape[1],
        offsets=pool.offsets,
        seeds=seeds,
        normalize=normalize,
        short="repeat",
    ).indices
    absent = picks[:, 0] < 0
    chosen = pool.embeddings.index_select(0, picks.flatten().clamp_(min=0)).view(old.shape)
    kept = int(absent.sum())
    return Choice(torch.where(absent[:, None, None], old, chosen) if kept else chosen, kept)


@torch.no_grad()
def covering_radii(pool: EmbeddedPool, centres: Tensor, normalize: Normalize) -> Tensor:
    """[classes in the pool]: largest distance of a point to the nearest of its class's centres [C, K, D]."""
    # That point is what k-center seeded by the centres picks first.
    picks = F.farthest_points(
        pool.embeddings, 1, offsets=pool.offsets, seeds=centres, normalize=normalize
    ).indices[:, 0]
    present = picks >= 0
    if not present.all():
        picks, centres = picks[present], centres[present]
    radii = []
    for pick, part in zip(_in_parts(picks, centres), _in_parts(centres, centres), strict=True):
        points = normalise(pool.embeddings.index_select(0, pick), normalize)[:, None]
        # By differences, with no array of them.
        distances = torch.cdist(points, normalise(part, normalize), compute_mode=_EXACT)
        radii.append(distances[:, 0].amin(1))
    return torch.cat(radii)


@torch.no_grad()
def spread(centres: Tensor, normalize: Normalize) -> float:
    """Mean distance between two centres of a class of [C, K, D]; 0 for K = 1."""
    classes, count, _ = centres.shape
    total = centres.new_zeros(())
    for part in _in_parts(centres, centres):
        vectors = normalise(part, normalize)
        for gap in range(1, count):  # each pair once, by how far apart it stands in the list
            total += torch.linalg.vector_norm(vectors[:, gap:] - vectors[:, :-gap], dim=2).sum()
    return float(total) / max(classes * count * (count - 1) // 2, 1)


def _in_parts(x: Tensor, centres: Tensor) -> tuple[Tensor, ...]:
    """x [C, ...] cut between classes of the centres [C, K, D], so that normalised copies stay in the cache."""
    numbers = 1 << (18 if centres.device.type == "cpu" else 24)
    return torch.split(x, max(1, numbers // (centres.shape[1] * centres.shape[2])))


def check_pool(pool: EmbeddedPool, proxies: Tensor, pool_size: int) -> EmbeddedPool:
    """The pool in dtype and device of the proxies [C, K, D]; ValueError if it does not fit them."""
    classes, _, dim = proxies.shape
    embeddings, offsets = pool
    if embeddings.dim() != 2 or embeddings.shape[1] != dim or len(embeddings) == 0:
        raise ValueError(f"pool: expected embeddings of shape [N > 0, {dim}], got {list(embeddings.shape)}")
    if offsets.shape != (classes + 1,):
        shape = list(offsets.shape)
        raise ValueError(
            f"pool: expected offsets of shape [{classes + 1}] for {classes} classes, got {shape}"
        )
    largest = int(offsets.diff().max())
    if largest > pool_size:
        raise ValueError(
            f"pool: expected at most pool_size = {pool_size} embeddings per class, got {largest}"
        )
    return EmbeddedPool(embeddings.detach().to(proxies), offsets.to(proxies.device))
