"""Greedy k-center over many small segments: what a re-initialisation of proxies costs on SOP; over a large one, too."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast import functional
from ccp_fast.bench.baselines import farthest, lists
from ccp_fast.bench.case import CPU, Aim, Case, Implementation, Outputs, Place, Size, Step, Work
from ccp_fast.bench.cases import kernel_work

FAMILY = "k-center"
COVERS = 0.02  # of a radius: rounding may make a near tie another pick

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


def make_inputs(shape: Shape, seed: int = 0, place: Place = CPU) -> Inputs:
    """Random, the same every time on the same kind of device."""
    random = torch.Generator(place.device).manual_seed(seed)
    x = torch.randn(
        shape.segments, shape.points + shape.seeds, shape.dim, generator=random, device=place.device
    )
    x = torch.nn.functional.normalize(x, dim=-1)
    return Inputs(x[:, : shape.points].contiguous(), x[:, shape.points :].contiguous(), shape.k)


def make_started(shape: Shape, seed: int = 0, place: Place = CPU) -> Inputs:
    """Each segment's first point is its only seed: picks go on from there."""
    points, _, k = make_inputs(shape._replace(seeds=0), seed, place)
    return Inputs(points, points[:, :1].contiguous(), k)


def cases(size: Size) -> list[Case]:
    """SOP's pools; results are the covering radii."""
    return [case("sop", SHAPES[size], aims=(Aim("speed", "eager", 10.0),))]


def case(
    setting: str, shape: Shape, place: Place = CPU, peers: bool = False, aims: tuple[Aim, ...] = ()
) -> Case:
    """One shape; `peers`: started at the first point of each segment, so that other libraries can compete."""
    implementations = [
        Implementation("ccp_fast", "ours", _ours),
        Implementation("batched loop", "eager", partial(_eager, lists.k_center_loop)),
    ]
    if shape.segments > 1:
        implementations.append(
            Implementation("table of distances", "eager", partial(_eager, lists.k_center_table))
        )
    if peers:
        implementations += [
            Implementation(name, "peer", partial(_peer, make)) for name, make in farthest.SAMPLERS.items()
        ]
    return Case(
        family=FAMILY,
        name="farthest_points",
        setting=setting,
        shape=str(shape),
        inputs=partial(make_started if peers else make_inputs, shape, place=place),
        work=work,
        implementations=tuple(implementations),
        truth=lambda inputs: _eager(
            lists.k_center_loop, Inputs(inputs.points.double(), inputs.seeds.double(), inputs.k)
        )(),
        aims=aims,
        precision=place.precision,
        kernel_work=lambda inputs, work, launches, _: kernel_work.of_k_center(
            inputs.points, inputs.seeds, work, launches
        ),
    )


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


def _peer(make: Callable[[], farthest.Sampler], inputs: Inputs) -> Step:
    """Its indices; that they cover as well as ours is checked beforehand, so that the same work is timed."""
    sample, picks = make(), inputs.k + 1  # with the start, which is our seed
    ours = _ours(inputs)()[0][:, -1]
    theirs = lists.covering_radius(inputs.points, sample(inputs.points, picks))
    if not torch.allclose(theirs, ours, rtol=COVERS):
        worst = float(((theirs - ours).abs() / ours).max())
        raise RuntimeError(f"its picks cover with other radii than ours, by up to {worst:.0%}")

    def step() -> Outputs:
        sample(inputs.points, picks)
        return ()

    return step
