"""Queries and what is found for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ccp_fast.data import EvaluationSet, ImageSource
from ccp_fast.evaluation import nearest, retrieval_per_query
from ccp_fast.functional import Normalize
from ccp_fast.training.measure import Vectors
from ccp_fast.training.report.images import thumbnail

MOST_SHOWN = 12  # neighbours of a query


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
    vectors: Vectors,
    images: EvaluationSet,
    normalize: Normalize,
    *,
    drawn: int = 10,
    hardest: int = 6,
    seed: int = 0,
) -> Gallery:
    """Queries drawn at random, and those of lowest average precision; each of another class.

    Beside each are as many neighbours as the largest class can give, and 12 at most.
    """
    query, gallery = vectors
    labels, searched = images.query.labels, images.searched
    alone = gallery is None  # then a query is among what it is searched in, and leaves out itself
    precision = retrieval_per_query(
        query,
        labels.to(query.device),
        gallery,
        None if alone else searched.labels.to(query.device),
        ["map_at_r"],
        normalize=normalize,
    )["map_at_r"].cpu()
    shown = min(MOST_SHOWN, int(searched.labels.bincount().max()) - alone)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).tolist()
    asking = [i for i in order if not precision[i].isnan()]
    worst = [i for i in precision.argsort(stable=True).tolist() if not precision[i].isnan()]

    def found(i: int) -> Found:
        reference = query if gallery is None else gallery
        ranked = nearest(query[i : i + 1], shown + alone, reference, normalize=normalize).indices[0]
        kept = [j for j in ranked.tolist() if not (alone and j == i)][:shown]
        tiles = [_tile(searched, j, bool(searched.labels[j] == labels[i])) for j in kept]
        return Found(_tile(images.query, i, True), tiles, float(precision[i]))

    return Gallery(
        [found(i) for i in _one_per_class(asking, labels, drawn)],
        [found(i) for i in _one_per_class(worst, labels, hardest)],
    )


def _one_per_class(queries: list[int], labels: Tensor, count: int) -> list[int]:
    kept: dict[int, int] = {}
    for query in queries:
        kept.setdefault(int(labels[query]), query)
        if len(kept) == count:
            break
    return list(kept.values())


def _tile(images: ImageSource, index: int, right: bool) -> Tile:
    return Tile(thumbnail(images.image(index)), images.caption(index), right)
