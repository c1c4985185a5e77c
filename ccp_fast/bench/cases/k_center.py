"""Greedy k-center over many small segments: what a re-initialisation of proxies costs on SOP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast import functional
from ccp_fast.bench.baselines import lists
from ccp_fast.bench.case import Aim, Case, Implementation, Outputs, Size, Step, Work

FAMILY = "k-center"

KCenter = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class Shape(NamedTuple):
    """S segments of n points in D dimensions, t seeds and k picks each."""

    segments: int
    points: int
    dim: int
    seeds: int
    k: int

    def __str__(self) -> str:
        """As shown."""
        return f"{self.segments:,} x {self.points} x {self.dim}, {self.seeds} seeds, k={self.k}"


SHAPES: dict[Size, Shape] = {
    "full": Shape(11_318, 7, 128, 4, 4),
    "quick": Shape(1_415, 7, 128, 4, 4),
    "toy": Shape(50, 7, 16, 2, 3),
}


class Inputs(NamedTuple):
    """Unit vectors, as pools of embeddings are."""

    points: Tensor  # [S, n, D]
    seeds: Tensor  # [S, t, D]
    k: int


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    """Random, the same every time."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(shape.segments, shape.points + shape.seeds, shape.dim, generator=random)
    x = torch.nn.functional.normalize(x, dim=-1)
    return Inputs(x[:, : shape.points].contiguous(), x[:, shape.points :].contiguous(), shape.k)


def cases(size: Size) -> list[Case]:
    """SOP's pools; results are the covering radii."""
    shape = SHAPES[size]
    return [
        Case(
            family=FAMILY,
            name="farthest_points",
            setting="sop",
            shape=str(shape),
            inputs=partial(make_inputs, shape),
            work=work,
            implementations=(
                Implementation("ccp_fast", "ours", _ours),
                Implementation("batched loop", "eager", partial(_eager, lists.k_center_loop)),
                Implementation("table of distances", "eager", partial(_eager, lists.k_center_table)),
            ),
            truth=lambda inputs: _eager(
                lists.k_center_loop, Inputs(inputs.points.double(), inputs.seeds.double(), inputs.k)
            )(),
            aims=(Aim("speed", "eager", 10.0),),
        )
    ]


def work(inputs: Inputs) -> Work:
    """n·(t + k) distances a segment, 3·D FLOPs each; points and seeds read, indices and radii written."""
    segments, points, dim = inputs.points.shape
    distances = segments * points * (inputs.seeds.shape[1] + inputs.k)
    return Work(
        3.0 * distances * dim, inputs.points.nbytes + inputs.seeds.nbytes + 12.0 * segments * inputs.k
    )


def _ours(inputs: Inputs) -> Step:
    def step() -> Outputs:
        return (functional.farthest_points(inputs.points, inputs.k, seeds=inputs.seeds).radii,)

    return step


def _eager(function: KCenter, inputs: Inputs) -> Step:
    def step() -> Outputs:
        return (function(*inputs)[1],)

    return step
