"""The projection's gradient over all parameters of a ResNet-50."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast import functional
from ccp_fast.bench.baselines import lists
from ccp_fast.bench.case import CPU, Aim, Case, Implementation, Outputs, Place, Size, Step, Work
from ccp_fast.bench.cases import kernel_work
from ccp_fast.bench.ceilings import copies

FAMILY = "projection"
LAMBDA = 2e-4

Projection = Callable[[list[Tensor], list[Tensor], list[Tensor], float], object]


class Inputs(NamedTuple):
    """Three lists of the same shapes."""

    grads: list[Tensor]
    params: list[Tensor]
    previous: list[Tensor]


def resnet50_shapes() -> list[tuple[int, ...]]:
    """The 161 parameters of ResNet-50 (He et al. 2016, table 1; 1,000 classes), 25,557,032 numbers."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for blocks, width in zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True):
        for block in range(blocks):
            for out, into, kernel in ((width, channels, 1), (width, width, 3), (4 * width, width, 1)):
                shapes += [(out, into, kernel, kernel), (out,), (out,)]
            if block == 0:
                shapes += [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    return [*shapes, (1000, channels), (1000,)]


def make_inputs(shapes: list[tuple[int, ...]], seed: int = 0, place: Place = CPU) -> Inputs:
    """Random, the same every time on the same kind of device."""
    random = torch.Generator(place.device).manual_seed(seed)

    def numbers(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=random, device=place.device).to(place.dtype)

    return Inputs(*([numbers(shape) for shape in shapes] for _ in range(3)))


def cases(size: Size) -> list[Case]:
    """One list of parameters, beside copies of as many bytes as the floor says."""
    copies_of_bytes = (
        Implementation("copy by Tensor.copy_", "copy", partial(_copy, "Tensor.copy_")),
        Implementation("copy by memcpy", "copy", partial(_copy, "memcpy")),
    )
    return [case(size, copies_of_bytes, aims=(Aim("rate", "copy", 0.9),))]


def case(
    size: Size, copies_of_bytes: tuple[Implementation, ...], place: Place = CPU, aims: tuple[Aim, ...] = ()
) -> Case:
    """ResNet-50, or part of it where the size is not full."""
    everything = resnet50_shapes()
    shapes = {"full": everything, "quick": everything[-30:], "toy": everything[:12]}[size]
    numbers = sum(torch.Size(shape).numel() for shape in shapes)
    return Case(
        family=FAMILY,
        name="projection_grad_",
        setting="resnet-50",
        shape=f"{len(shapes)} tensors, {numbers / 1e6:.1f} M",
        inputs=partial(make_inputs, shapes, place=place),
        work=work,
        implementations=(
            Implementation("ccp_fast", "ours", partial(_prepare, _ours)),
            Implementation("two _foreach_add_", "eager", partial(_prepare, lists.projection_foreach)),
            Implementation("add_ one by one", "eager", partial(_prepare, lists.projection_each)),
            *copies_of_bytes,
        ),
        truth=_truth,
        aims=aims,
        in_place=True,
        precision=place.precision,
        kernel_work=lambda inputs, work, launches, _: kernel_work.of_projection(
            inputs.params, work, launches
        ),
    )


def work(inputs: Inputs) -> Work:
    """Three lists read, one written; difference, product, sum, and square and sum of the penalty."""
    numbers = sum(param.numel() for param in inputs.params)
    return Work(5.0 * numbers, 4.0 * sum(param.nbytes for param in inputs.params))


def copy_on_device(inputs: Inputs) -> Step:
    """As many bytes as the floor says, by one Tensor.copy_ on the parameters' device."""
    bytes_read = 2 * sum(param.nbytes for param in inputs.params)
    source = torch.ones(bytes_read, dtype=torch.uint8, device=inputs.params[0].device)
    target = torch.empty_like(source)

    def step() -> Outputs:
        target.copy_(source)
        return ()

    return step


def _ours(grads: list[Tensor], params: list[Tensor], previous: list[Tensor], lam: float) -> Tensor:
    return functional.projection_grad_(params, previous, lam, grads)


def _prepare(projection: Projection, inputs: Inputs) -> Step:
    """Gradients of its own: the step adds to them time and again."""
    grads = [grad.clone() for grad in inputs.grads]

    def step() -> Outputs:
        projection(grads, inputs.params, inputs.previous, LAMBDA)
        return grads

    return step


def _copy(how: str, inputs: Inputs) -> Step:
    """As many bytes as the floor says: all numbers read twice and written twice."""
    numbers = sum(param.numel() for param in inputs.params)
    copy = copies(numbers, torch.get_num_threads())[how]

    def step() -> Outputs:
        copy()
        copy()
        return ()

    return step


def _truth(inputs: Inputs) -> Outputs:
    return [
        grad.double() + LAMBDA * (param.double() - before.double())
        for grad, param, before in zip(*inputs, strict=True)
    ]
