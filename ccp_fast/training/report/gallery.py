"""Queries and what is found for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccp_fast.data import ImageSet
from ccp_fast.evaluation import nearest, retrieval_per_query
from ccp_fast.functional import Normalize
from ccp_fast.training.report.images import ink_on_paper


@dataclass(frozen=True)
class Tile:
    """An image of the gallery."""

    image: str  # data URI
    caption: str
    right: bool


@dataclass(frozen=True)
class Found:
    """A query and its nearest images, the nearest first."""

    query: Tile
    neighbours: list[Tile]
    average_precision: float


@dataclass(frozen=True)
class Gallery:
    """A fair choice of queries, and the worst."""

    drawn: list[Found]
    hardest: list[Found]


def make_gallery(
    embeddings: Tensor,
    images: ImageSet,
    normalize: Normalize,
    *,
    drawn: int = 10,
    hardest: int = 6,
    seed: int = 0,
) -> Gallery:
    """Queries drawn at random, and those of lowest average precision; each of another class."""
    ranked = nearest(embeddings, int(images.labels.bincount().max()) - 1, normalize=normalize).indices
    precision = retrieval_per_query(embeddings, images.labels, metrics=["map_at_r"], normalize=normalize)[
        "map_at_r"
    ]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))

    def found(query: int) -> Found:
        label = int(images.labels[query])
        tiles = [_tile(images, i, int(images.labels[i]) == label) for i in ranked[query].tolist()]
        return Found(_tile(images, query, True), tiles, float(precision[query]))

    chosen = _one_per_class(order.tolist(), images.labels, drawn)
    worst = _one_per_class(precision.argsort(stable=True).tolist(), images.labels, hardest)
    return Gallery([found(query) for query in chosen], [found(query) for query in worst])


def _one_per_class(queries: list[int], labels: Tensor, count: int) -> list[int]:
    kept: dict[int, int] = {}
    for query in queries:
        kept.setdefault(int(labels[query]), query)
        if len(kept) == count:
            break
    return list(kept.values())


def _tile(images: ImageSet, index: int, right: bool) -> Tile:
    name = images.class_names[int(images.labels[index])]
    return Tile(
        ink_on_paper(images.images[index]),
        f"{name} in {images.sources[int(images.source_ids[index])]}",
        right,
    )
