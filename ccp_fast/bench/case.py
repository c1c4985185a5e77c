"""What a case is: inputs, the work they stand for, who competes on them, what is aimed at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

Outputs = Sequence[Tensor]
Step = Callable[[], Outputs]

Role = Literal["ours", "eager", "compiled", "peer", "copy"]
Size = Literal["full", "quick", "toy"]


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
    """What ours is to reach, beside the best of the implementations in the role `against`.

    speed   at least `bound` times as fast
    memory  at most `bound` of the extra memory
    rate    at least `bound` of the bytes per second
    """

    kind: Literal["speed", "memory", "rate"]
    against: Role
    bound: float


@dataclass(frozen=True)
class Case:
    """A step returns its results: for a loss the value, then the gradients.

    `truth` gives the same from float64. `in_place`: the results are tensors that existed before, so none of
    them is new memory.
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

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the case, whatever its size."""
        return self.family, self.name, self.setting

    def implementation(self, name: str) -> Implementation:
        """By name."""
        return next(i for i in self.implementations if i.name == name)
