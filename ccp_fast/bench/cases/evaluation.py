"""Retrieval metrics of a whole test set."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast.bench.baselines import lists, peers
from ccp_fast.bench.case import CPU, Case, Implementation, Outputs, Place, Size, Step, Work
from ccp_fast.evaluation import retrieval

FAMILY = "evaluation"
METRICS = ("precision_at_1", "r_precision", "map_at_r")
DIM = 128
CLASS_SIZES = (4, 5, 7)  # 5.3 images a class, as SOP has

Score = Callable[[Tensor, Tensor], Tensor]


class Inputs(NamedTuple):
    """Embeddings not quite sorted into their classes."""

    embeddings: Tensor  # [N, D] unit vectors
    labels: Tensor  # [N] int64


def make_inputs(classes: int, seed: int = 0, place: Place = CPU) -> Inputs:
    """Random, the same every time."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(_sizes(classes))
    labels = labels[torch.randperm(len(labels), generator=random)]
    centers = torch.randn(classes, DIM, generator=random)
    x = centers[labels] + 1.3 * torch.randn(len(labels), DIM, generator=random)
    return Inputs(torch.nn.functional.normalize(x, dim=1).to(place.device), labels.to(place.device))


def _sizes(classes: int) -> Tensor:
    return torch.tensor(CLASS_SIZES).repeat(classes // len(CLASS_SIZES) + 1)[:classes]


def cases(size: Size) -> list[Case]:
    """12,000 images; results are P@1, R-precision and MAP@R."""
    return [case(size)]


def case(size: Size, place: Place = CPU) -> Case:
    """One test set."""
    classes = {"full": 2_250, "quick": 300, "toy": 30}[size]
    most = max(CLASS_SIZES) - 1
    images = int(_sizes(classes).sum())
    return Case(
        family=FAMILY,
        name="retrieval",
        setting="test set",
        shape=f"{images:,} x {DIM}",
        inputs=partial(make_inputs, classes, place=place),
        work=work,
        implementations=(
            Implementation("ccp_fast", "ours", partial(_prepare, _ours)),
            Implementation(
                "blocks and topk", "eager", partial(_prepare, partial(lists.retrieval, most=most))
            ),
            Implementation(
                "pytorch-metric-learning",
                "peer",
                lambda inputs: _prepare(peers.retrieval(place.device), inputs),
            ),
        ),
        truth=lambda inputs: (lists.retrieval(inputs.embeddings.double(), inputs.labels, most),),
        precision=place.precision,
        products=True,
    )


def work(inputs: Inputs) -> Work:
    """All distances, no matter how the nearest are found."""
    images, dim = inputs.embeddings.shape
    return Work(2.0 * images * images * dim, inputs.embeddings.nbytes + inputs.labels.nbytes)


def _ours(embeddings: Tensor, labels: Tensor) -> Tensor:
    values = retrieval(embeddings, labels, metrics=METRICS)
    return torch.tensor([values[name] for name in METRICS], dtype=torch.float64)


def _prepare(score: Score, inputs: Inputs) -> Step:
    def step() -> Outputs:
        return (score(inputs.embeddings, inputs.labels),)

    return step
