"""Collectives as this package needs them: rows of uneven numbers, sums in rank order, clear errors, and a log.

Without a process group (one process, nothing initialised) every collective is the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Names of torch >= 2.13, and those before.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class RankLost(RuntimeError):
    """Another process of the group died or does not answer."""


class Message(NamedTuple):
    """One collective, as `traced` logs it."""

    kind: str  # all_gather, all_to_all, reduce_scatter, all_reduce
    name: str  # what it was for
    bytes: int  # of this rank's input to reduce_scatter and all_to_all, of its output from all_gather and all_reduce


_logs: list[list[Message]] = []


@contextmanager
def traced() -> Iterator[list[Message]]:
    """Every collective that `Communicator` starts inside, in order."""
    log: list[Message] = []
    _logs.append(log)
    try:
        yield log
    finally:
        _logs.remove(log)


@contextmanager
def clear_errors(what: str) -> Iterator[None]:
    """Turns what a backend says when a peer is gone into a `RankLost` that says what to do.

    For your own collectives and those of DDP and FSDP2, put it around the training loop.
    """
    try:
        yield
    except RankLost:
        raise
    except RuntimeError as error:  # DistBackendError is one; gloo raises it plain
        text = str(error)
        signs = (
            "gloo",
            "NCCL",
            "Connection",
            "connection",
            "Timed out",
            "timed out",
            "timeout",
            "Broken pipe",
        )
        if not isinstance(error, dist.DistBackendError) and not any(sign in text for sign in signs):
            raise
        rank = dist.get_rank() if dist.is_initialized() else 0
        raise RankLost(
            f"rank {rank}: a process of the group died or did not answer in time ({what}). This run stops here; "
            "start it again, with as many or fewer processes, from its last checkpoint. "
            f"The backend said: {text.splitlines()[0] if text else type(error).__name__}"
        ) from error


class Communicator:
    """A process group, or none."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        alone = not (dist.is_available() and dist.is_initialized())
        if alone and group is not None:
            raise ValueError("group: expected None where torch.distributed is not initialised")
        self.rank = 0 if alone else dist.get_rank(group)
        self.size = 1 if alone else dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: expected one that this process is a member of")

    def gather_integers(self, numbers: Sequence[int], device: torch.device, name: str) -> list[list[int]]:
        """The numbers of every rank."""
        if self.size == 1:
            return [list(numbers)]
        mine = torch.tensor(numbers, dtype=torch.int64, device=device)
        every = self._gather(mine, name).view(self.size, -1)
        return [[int(x) for x in row] for row in every.tolist()]

    def gather(self, x: Tensor, name: str) -> Tensor:
        """[ranks, ...] of equal shapes [...]."""
        if self.size == 1:
            return x[None]
        return self._gather(x.contiguous(), name).view(self.size, *x.shape)

    def gather_rows(self, x: Tensor, sizes: Sequence[int], name: str) -> Tensor:
        """Rows [sizes[0] + sizes[1] + ..., ...] of all ranks in their order, this one's being x."""
        if self.size == 1:
            return x
        return _without_padding(self.gather(_padded(x, max(sizes)), name), sizes)

    def scatter_sum_rows(self, x: Tensor, sizes: Sequence[int], name: str) -> Callable[[], Tensor]:
        """Starts to add x [sum of sizes, ...] up over the ranks; calling the result waits for this rank's rows."""
        if self.size == 1:
            return lambda: x
        parts = x.split(list(sizes))
        most = max(sizes)
        whole = x if all(n == most for n in sizes) else torch.cat([_padded(part, most) for part in parts])
        out = x.new_empty((most, *x.shape[1:]))
        _log("reduce_scatter", name, whole)
        with clear_errors(name):
            work = _reduce_scatter(out, whole.contiguous(), group=self.group, async_op=True)

        def wait() -> Tensor:
            with clear_errors(name):
                work.wait()
            return out[: sizes[self.rank]]

        return wait

    def exchange(self, x: Tensor, sizes: Sequence[int], name: str) -> Tensor:
        """From x [n, sum of sizes], which has a part [n, sizes[r]] for every rank r: [ranks, n, own size], what the
        ranks have for this one.
        """
        if self.size == 1:
            return x[None]
        n, mine = len(x), sizes[self.rank]
        flat = torch.cat([part.reshape(-1) for part in x.split(list(sizes), dim=1)])
        out = x.new_empty(self.size * n * mine)
        _log("all_to_all", name, flat)
        with clear_errors(name):
            dist.all_to_all_single(
                out, flat, [n * mine] * self.size, [n * size for size in sizes], group=self.group
            )
        return out.view(self.size, n, mine)

    def sum(self, x: Tensor, name: str) -> Tensor:
        """The sum over the ranks, in their order: the same bits on all of them and from run to run."""
        if self.size == 1:
            return x
        return self.gather(x, name).sum(0)

    def all_reduce(self, x: Tensor, name: str) -> Tensor:
        """The sum over the ranks, for tensors too large to have of every rank; rounding is the backend's."""
        if self.size == 1:
            return x
        out = x.clone()
        _log("all_reduce", name, out)
        with clear_errors(name):
            dist.all_reduce(out, group=self.group)
        return out

    def barrier(self, name: str) -> None:
        """All ranks come here before one goes on."""
        if self.size > 1:
            with clear_errors(name):
                dist.barrier(group=self.group)

    def _gather(self, x: Tensor, name: str) -> Tensor:
        out = x.new_empty((self.size * x.numel(),))
        _log("all_gather", name, out)
        with clear_errors(name):
            _all_gather(out, x.reshape(-1), group=self.group)
        return out


def _log(kind: str, name: str, x: Tensor) -> None:
    for log in _logs:
        log.append(Message(kind, name, x.numel() * x.element_size()))


def _padded(x: Tensor, rows: int) -> Tensor:
    if len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros((rows - len(x), *x.shape[1:]))])


def _without_padding(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """[sum of sizes, ...] from [ranks, most, ...]."""
    if all(n == x.shape[1] for n in sizes):
        return x.flatten(0, 1)
    return torch.cat([rows[:n] for rows, n in zip(x, sizes, strict=True)])
