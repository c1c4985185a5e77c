"""A map of some classes: every image lies where t-SNE puts its embedding, in the colour of its class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.manifold import TSNE
from torch import Tensor
from torch.nn.functional import normalize as unit

from ccp_fast.data import ImageSource
from ccp_fast.training.report.images import coloured, hues

WIDTH, HEIGHT, GLYPH = 1000, 620, 30  # of the drawing, and of an image in it
MOST_PER_CLASS = 10


@dataclass(frozen=True)
class Mark:
    """An image on the map."""

    x: float  # of its upper left corner
    y: float
    image: str  # data URI
    caption: str


def make_map(embeddings: Tensor, images: ImageSource, *, classes: int = 24, seed: int = 0) -> list[Mark]:
    """Marks for the images of some classes drawn at random, the first ones of a class that has many.

    Distances are, roughly, those of unit vectors.
    """
    chosen = torch.randperm(images.num_classes, generator=torch.Generator().manual_seed(seed))[:classes]
    rows = torch.cat(
        [(images.labels == c).nonzero().squeeze(1)[:MOST_PER_CLASS] for c in chosen.sort().values]
    )
    points = _plane(unit(embeddings[rows.to(embeddings.device)]).cpu(), seed)
    colours = dict(zip(chosen.tolist(), hues(len(chosen)), strict=True))
    marks = []
    for row, (x, y) in zip(rows.tolist(), points.tolist(), strict=True):
        label = int(images.labels[row])
        picture = coloured(images.image(row), colours[label])
        marks.append(Mark(round(x, 1), round(y, 1), picture, images.caption(row)))
    return marks


def _plane(vectors: Tensor, seed: int) -> Tensor:
    """[n, 2], filling the drawing."""
    # A class has 8 images: a larger perplexity would pull neighbouring classes together.
    tsne = TSNE(perplexity=min(8, len(vectors) - 1), init="pca", random_state=seed)
    points = torch.from_numpy(tsne.fit_transform(vectors.numpy()))
    low, high = points.amin(0), points.amax(0)
    room = torch.tensor([WIDTH - GLYPH, HEIGHT - GLYPH])
    return _apart((points - low) / (high - low).clamp(min=1e-9) * room, room)


def _apart(points: Tensor, room: Tensor, rounds: int = 100) -> Tensor:
    """Push images that cover each other apart, so that they can be read; a cluster stays where it is."""
    least = 0.75 * GLYPH
    for _ in range(rounds):
        between = points[:, None] - points  # [n, n, 2]
        distance = between.norm(dim=2, keepdim=True).clamp(min=1e-6)
        overlap = (least - distance).clamp(min=0)
        points = (points + 0.25 * (overlap * between / distance).sum(1)).clamp(min=0).minimum(room)
    return points
