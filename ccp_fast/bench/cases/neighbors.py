"""Nearest references: the proxy a sample belongs to, and the neighbours that queries find in a gallery."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ccp_fast import functional
from ccp_fast.bench.baselines import nearest
from ccp_fast.bench.case import CPU, Aim, Case, Implementation, Outputs, Place, Size, Step, Work
from ccp_fast.bench.cases import kernel_work
from ccp_fast.bench.cases.losses import COLLAPSED

FAMILY = "neighbors"

Search = Callable[[Tensor, Tensor, int], Tensor]  # distances [M, k]


class Shape(NamedTuple):
    """M anchors, N references in D dimensions, k neighbours."""

    anchors: int
    references: int
    dim: int
    k: int
    collapsed: bool = False  # all near one point, as an untrained network's

    def __str__(self) -> str:
        """As shown."""
        near = ", near one point" * self.collapsed
        return f"{self.anchors:,} vs {self.references:,} x {self.dim}, k={self.k}{near}"


# A batch and SOP's proxies; In-shop's queries and gallery.
SHAPES: dict[Size, dict[str, Shape]] = {
    "full": {"sop": Shape(128, 45_272, 128, 1), "in-shop": Shape(14_218, 12_612, 128, 10)},
    "quick": {"sop": Shape(128, 4_096, 128, 1), "in-shop": Shape(1_000, 2_000, 128, 10)},
    "toy": {"sop": Shape(64, 160, 16, 1), "in-shop": Shape(70, 150, 16, 10)},
}
FASTER = (Aim("speed", "eager", 1.0), Aim("speed", "peer", 1.0))


class Inputs(NamedTuple):
    """Unit vectors, references around some of the anchors."""

    anchors: Tensor  # [M, D]
    references: Tensor  # [N, D]
    k: int


def make_inputs(shape: Shape, seed: int = 0, place: Place = CPU) -> Inputs:
    """Random, the same every time on the same kind of device."""
    random = torch.Generator(place.device).manual_seed(seed)

    def normal(count: int) -> Tensor:
        return torch.randn(count, shape.dim, generator=random, device=place.device)

    def unit(x: Tensor) -> Tensor:
        return normalize(x if point is None else point + COLLAPSED * normalize(x, dim=1), dim=1).to(
            place.dtype
        )

    anchors = normal(shape.anchors)
    around = torch.randint(shape.anchors, (shape.references,), generator=random, device=place.device)
    references = anchors[around] + 1.3 * normal(shape.references)
    point = normalize(normal(1), dim=1) if shape.collapsed else None
    return Inputs(unit(anchors), unit(references), shape.k)


def cases(size: Size) -> list[Case]:
    """Results are the distances."""
    return [case(setting, shape, aims=FASTER) for setting, shape in SHAPES[size].items()]


def case(setting: str, shape: Shape, place: Place = CPU, aims: tuple[Aim, ...] = ()) -> Case:
    """One shape."""
    implementations = [
        Implementation("ccp_fast", "ours", partial(_prepare, _ours)),
        Implementation("blocks and topk", "eager", partial(_prepare, nearest.blocks_and_topk)),
        Implementation("blocks of cdist and topk", "eager", partial(_prepare, nearest.cdist_and_topk)),
    ]
    if place.device == "cpu":
        implementations.append(Implementation("faiss IndexFlatL2", "peer", _faiss))
    return Case(
        family=FAMILY,
        name="nearest_references",
        setting=setting,
        shape=str(shape),
        inputs=partial(make_inputs, shape, place=place),
        work=work,
        implementations=tuple(implementations),
        truth=lambda inputs: (
            nearest.cdist_and_topk(inputs.anchors.double(), inputs.references.double(), inputs.k),
        ),
        aims=aims,
        precision=place.precision,
        kernel_work=lambda inputs, work, launches, _: kernel_work.of_neighbors(
            inputs.anchors, inputs.references, inputs.k, launches
        ),
        products=True,
    )


def work(inputs: Inputs) -> Work:
    """All distances; both sides read, indices and distances written, once."""
    m, dim = inputs.anchors.shape
    written = 12.0 * m * inputs.k
    return Work(
        2.0 * m * len(inputs.references) * dim, inputs.anchors.nbytes + inputs.references.nbytes + written
    )


def _ours(anchors: Tensor, references: Tensor, k: int) -> Tensor:
    return functional.nearest_references(anchors, references, k).distances


def _prepare(search: Search, inputs: Inputs) -> Step:
    def step() -> Outputs:
        return (search(inputs.anchors, inputs.references, inputs.k),)

    return step


def _faiss(inputs: Inputs) -> Step:
    return _prepare(nearest.faiss_flat(inputs.references), inputs)
