"""Proxies from a pool by k-center, and what a set of proxies covers."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast import functional as F
from ccp_fast.alternating.pool import EmbeddedPool
from ccp_fast.reference.pairs import Normalize, normalise


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
    chosen = pool.embeddings[picks.clamp(min=0)]
    return Choice(torch.where(absent[:, None, None], old, chosen), int(absent.sum()))


@torch.no_grad()
def covering_radii(pool: EmbeddedPool, centres: Tensor, normalize: Normalize) -> Tensor:
    """[classes in the pool]: largest distance of a point to the nearest of its class's centres [C, K, D]."""
    # That point is what k-center seeded by the centres picks first.
    picks = F.farthest_points(
        pool.embeddings, 1, offsets=pool.offsets, seeds=centres, normalize=normalize
    ).indices[:, 0]
    present = picks >= 0
    points = normalise(pool.embeddings[picks[present]], normalize)
    gaps = points[:, None] - normalise(centres[present], normalize)
    distances: Tensor = torch.linalg.vector_norm(gaps, dim=2)
    return distances.amin(1)


@torch.no_grad()
def spread(centres: Tensor, normalize: Normalize) -> float:
    """Mean distance between two centres of a class of [C, K, D]; 0 for K = 1."""
    classes, count, _ = centres.shape
    vectors = normalise(centres, normalize)
    # Not by |x|² + |y|² − 2xy: centres that coincide are at distance 0.
    distances = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    return float(distances.sum()) / max(classes * count * (count - 1), 1)


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
