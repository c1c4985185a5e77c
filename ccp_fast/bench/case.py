"""What a case is: inputs, the work they stand for, who competes on them, what is aimed at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ccp_fast.bench.launch import KernelWork, Launch

Outputs = Sequence[Tensor]
Step = Callable[[], Outputs]

# Shown, but no rivals: "path", ours on a way that is off by default; "part", a peer's kernel without what it leaves to
# others, so less work than ours; "coarse", a peer whose errors are those of a lower precision.
Role = Literal["ours", "path", "eager", "compiled", "peer", "part", "coarse", "copy"]
Size = Literal["full", "quick", "toy"]
# "tf32": float32 inputs, products of which matrix units may round the factors to tf32.
Precision = Literal["float32", "tf32", "bfloat16"]


class Place(NamedTuple):
    """Where a case's tensors are and what they are."""

    device: str = "cpu"
    precision: Precision = "float32"

    @property
    def dtype(self) -> torch.dtype:
        """Of the inputs."""
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32


CPU = Place()


class Work(NamedTuple):
    """The least any implementation must do; the floor is what the ceilings make of it."""

    flops: float  # additions and multiplications
    bytes: float  # inputs read once, results written once
    note: str = ""  # what the reader must know about these inputs

    def floor(
        self, flops_per_second: float, bytes_per_second: float
    ) -> tuple[float, Literal["FLOPs", "bytes"]]:
        """Seconds, and which of the two they come from."""
        by_flops, by_bytes = self.flops / flops_per_second, self.bytes / bytes_per_second
        return (by_flops, "FLOPs") if by_flops >= by_bytes else (by_bytes, "bytes")


@dataclass(frozen=True)
class Implementation:
    """One competitor. `prepare` takes the inputs and returns the step; only the step is timed."""

    name: str
    role: Role
    prepare: Callable[[Any], Step]


@dataclass(frozen=True)
class Aim:
    """What ours is to reach, beside the best of the implementations in the role `against`, or by itself.

    speed     at least `bound` times as fast
    memory    at most `bound` of the extra memory
    rate      at least `bound` of the bytes per second
    floor     at least `bound` of the floor: floor over time
    time      at most `bound` milliseconds
    launches  at most `bound` kernels in the forward pass and as many in the backward pass
    """

    kind: Literal["speed", "memory", "rate", "floor", "time", "launches"]
    against: Role
    bound: float


@dataclass(frozen=True)
class Case:
    """A step returns its results: for a loss the value, then the gradients.

    `truth` gives the same from float64, and `undecided`, where it is there, by how much the value and each vector of a
    gradient may be off because pairs lie on a margin. `in_place`: the results are tensors that existed before, so none
    of them is new memory. `products`: the FLOPs are those of matrix products, which matrix units can do. `passes`:
    our step cut into forward and backward, to see the kernels of each; None where there is no backward. `kernel_work`:
    what each launch of such a pass must do, of the inputs, the case's work, the launches and the multiprocessors.
    """

    family: str
    name: str
    setting: str  # where such a shape comes from; the same for every size
    shape: str
    inputs: Callable[[], Any]
    work: Callable[[Any], Work]
    implementations: tuple[Implementation, ...]
    truth: Callable[[Any], Outputs]
    aims: tuple[Aim, ...] = ()
    in_place: bool = False
    precision: Precision = "float32"
    products: bool = False
    passes: Callable[[Any], tuple[Step, Step]] | None = None
    undecided: Callable[[Any], Outputs] | None = None
    kernel_work: Callable[[Any, Work, Sequence[Launch], int], Sequence[KernelWork | None]] | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the case among those of one precision, whatever its size."""
        return self.family, self.name, self.setting

    @property
    def words(self) -> set[str]:
        """What it can be selected by."""
        return {*self.key, self.precision}

    def implementation(self, name: str) -> Implementation:
        """By name."""
        return next(i for i in self.implementations if i.name == name)
