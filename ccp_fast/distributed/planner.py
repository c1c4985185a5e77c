"""What a training step with sharded proxies takes: memory of a rank by part, every message, and where the limit lies.

    plan = plan_step(Setup(classes=10_000_000, proxies=4, dim=512, ranks=64))
    plan.memory, plan.messages, plan.most_classes, plan.fewest_ranks

Bytes are counted from the shapes, those of messages exactly as `traced` counts them. Seconds are estimates from the
bandwidths given, each with its formula in the docstring of `PlannedMessage`; nothing is measured here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ccp_fast.ops.similarity_loss import SAVED_PER_ROW
from ccp_fast.ops.similarity_shard import ROW_PARTS, USES_POSITIVES, members_of

Optimizer = Literal["sgd", "momentum", "adam"]
Network = Literal["ddp", "fsdp"]

STATES: dict[str, int] = {"sgd": 0, "momentum": 1, "adam": 2}  # copies of a parameter that an optimizer keeps
_DOUBLE = 8
_SLICES = 16  # parts in which the CPU kernels gather what they add up, kMostSlices
# Blocks of the GPU kernels that keep a tile of partial gradients each, on a B200, and rows of a tile.
_BLOCKS, _TILE = 2 * 148, 64


@dataclass(frozen=True)
class Setup:
    """A training step. Sizes in bytes, bandwidths in bytes a second, times in seconds."""

    classes: int
    proxies: int = 4  # of a class
    dim: int = 512
    ranks: int = 8
    batch: int = 128  # samples of a rank
    loss: str = "proxy_nca"  # a name of csrc/losses/registry.h
    proxy_rows: bool = False
    sample_rate: float = 1.0
    optimizer: Optimizer = "adam"
    proxy_bytes: int = 4  # of a number
    embedding_bytes: int = 2
    parameters: int = 25_600_000  # of the network; ResNet-50's
    parameter_bytes: int = 4
    network: Network = "ddp"
    # Of a sample, kept for backward; about ResNet-50's at 224 pixels in bfloat16.
    activations: int = 90_000_000
    memory: int = 80_000_000_000  # of a rank
    bandwidth: float = 50e9  # between ranks, of each: 400 Gbit/s
    latency: float = 5e-6  # of a message between two ranks
    memory_bandwidth: float = 3.35e12  # H100 SXM
    flops: float = 150e12  # of products: about an H100 with float32 in three tf32 products
    on_gpu: bool = True

    @property
    def own_classes(self) -> int:
        """Of the rank that has most."""
        return -(-self.classes // self.ranks)

    @property
    def sampled_classes(self) -> int:
        """That take part on a rank, the batch's own apart."""
        return math.ceil(self.sample_rate * self.own_classes)

    @property
    def samples(self) -> int:
        """Of all ranks."""
        return self.batch * self.ranks


class MemoryPart(NamedTuple):
    """Memory of one rank."""

    name: str
    bytes: int


class PlannedMessage(NamedTuple):
    """One collective of a step. A rank sends (R − 1)/R of the bytes, an all-reduce twice that, in R − 1 steps or twice
    as many: seconds = sent / bandwidth + steps · latency.
    """

    kind: str
    name: str
    bytes: int  # as in `ccp_fast.distributed.Message`
    seconds: float


class Plan(NamedTuple):
    """Of one rank and one step."""

    memory: list[MemoryPart]
    messages: list[PlannedMessage]
    # The larger of what products and reading and writing the proxies take, at the rates given.
    proxy_seconds: float
    most_classes: int  # that fit into the memory on as many ranks
    fewest_ranks: int  # on which as many classes fit; 0: on no number of them

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(part.bytes for part in self.memory)


def plan_step(setup: Setup) -> Plan:
    """The plan; ValueError for numbers that make no sense."""
    _check(setup)
    memory = memory_of(setup)
    return Plan(memory, messages_of(setup), _proxy_seconds(setup), _most_classes(setup), _fewest_ranks(setup))


def memory_of(setup: Setup) -> list[MemoryPart]:
    """By part, the largest first."""
    s = setup
    copies = 2 + STATES[s.optimizer]
    row = s.proxies * s.dim * s.proxy_bytes
    if s.sample_rate == 1:
        proxies = [
            MemoryPart("proxies", s.own_classes * row),
            MemoryPart("gradients of proxies", s.own_classes * row),
            MemoryPart("optimizer state of proxies", s.own_classes * row * STATES[s.optimizer]),
        ]
    else:
        proxies = [
            MemoryPart("proxies", s.own_classes * row),
            MemoryPart("optimizer state of proxies", s.own_classes * row * STATES[s.optimizer]),
            MemoryPart("sampled rows, their gradients and state", s.sampled_classes * row * copies),
        ]
    columns = s.sampled_classes * s.proxies
    rows = columns if s.proxy_rows else s.samples
    embedding = s.dim * s.embedding_bytes
    shared = s.ranks if s.network == "fsdp" else 1
    network = s.parameters * (2 + STATES[s.optimizer]) * s.parameter_bytes // shared
    kept_tiles = _BLOCKS * _TILE if s.on_gpu else _SLICES * min(s.samples, columns)
    scratch = kept_tiles * s.dim * 4
    parts = [
        *proxies,
        MemoryPart("batch of all ranks", s.samples * (2 * (embedding + 8) + embedding)),
        MemoryPart("gradients of embeddings", s.samples * (embedding + 4 * s.dim)),
        MemoryPart(
            "states of rows", rows * (2 * members_of(s.loss) + SAVED_PER_ROW) * 4 + rows * ROW_PARTS * _DOUBLE
        ),
        MemoryPart("flags of pairs", max(columns, s.samples)),
        MemoryPart("scratch of the kernels", scratch),
        MemoryPart("network, its gradients and optimizer state", network),
        MemoryPart("activations of the network", s.batch * s.activations),
    ]
    return sorted((part for part in parts if part.bytes), key=lambda part: -part.bytes)


def messages_of(setup: Setup) -> list[PlannedMessage]:
    """In the order of a step: those of the loss, then those of the network."""
    s, r = setup, setup.ranks
    if r == 1:
        return []
    messages = [
        ("all_gather", "batch sizes", r * 3 * 8),
        ("all_gather", "batch", r * s.batch * (s.dim * s.embedding_bytes + 8)),
    ]
    triplets = s.loss in USES_POSITIVES and not s.proxy_rows
    if triplets:
        messages.append(("all_reduce", "distances of positives", s.samples * s.proxies * 4))
    if s.proxy_rows:
        messages.append(("all_gather", "loss", r * ROW_PARTS * _DOUBLE))
    else:
        messages.append(("all_to_all", "row states", members_of(s.loss) * s.samples * 4))
        messages.append(("all_gather", "loss and rows", r * (SAVED_PER_ROW * s.batch + ROW_PARTS) * _DOUBLE))
    if s.loss == "soft_triple":
        messages.append(("all_reduce", "centre spread", 4))
    if triplets:
        messages.append(("all_reduce", "pairs of positives", s.samples * s.proxies * 4))
    messages.append(("reduce_scatter", "gradients of embeddings", s.samples * s.dim * 4))
    size = s.parameters * s.parameter_bytes
    if s.network == "ddp":
        messages.append(("all_reduce", "gradients of the network", size))
    else:
        messages.append(("all_gather", "weights of the network, forward", size))
        messages.append(("all_gather", "weights of the network, backward", size))
        messages.append(("reduce_scatter", "gradients of the network", size))
    return [PlannedMessage(kind, name, n, _seconds(s, kind, n)) for kind, name, n in messages]


def _seconds(s: Setup, kind: str, size: int) -> float:
    passes = 2 if kind == "all_reduce" else 1
    return passes * ((s.ranks - 1) / s.ranks * size / s.bandwidth + (s.ranks - 1) * s.latency)


def _proxy_seconds(s: Setup) -> float:
    """Forward's product, and in backward it again twice with that of either gradient: 10·M·N·D operations. The proxies
    are read three times and their gradients written; the optimizer reads and writes what it keeps.
    """
    numbers = s.sampled_classes * s.proxies * s.dim
    products = 10 * s.samples * numbers / s.flops
    passes = 4 + 3 + 2 * STATES[s.optimizer]
    return max(products, passes * numbers * s.proxy_bytes / s.memory_bandwidth)


def _fits(s: Setup) -> bool:
    return sum(part.bytes for part in memory_of(s)) <= s.memory


def _most_classes(s: Setup) -> int:
    if not _fits(replace(s, classes=1)):
        return 0
    low, high = 1, 2
    while _fits(replace(s, classes=high)):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(replace(s, classes=middle)) else (low, middle)
    return low


def _fewest_ranks(s: Setup) -> int:
    """With as many samples of each rank, what is gathered grows with the ranks: more of them need not help."""
    ranks = 1
    while ranks <= 1 << 16:
        if _fits(replace(s, ranks=ranks)):
            break
        ranks *= 2
    else:
        return 0
    low, high = ranks // 2, ranks
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _fits(replace(s, ranks=middle)) else (middle, high)
    return high


def _check(s: Setup) -> None:
    for name in ("classes", "proxies", "dim", "ranks", "batch", "proxy_bytes", "embedding_bytes", "memory"):
        if getattr(s, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(s, name)}")
    if not 0 < s.sample_rate <= 1:
        raise ValueError(f"sample_rate: expected above 0 and at most 1, got {s.sample_rate}")
    for name, value, allowed in (("optimizer", s.optimizer, STATES), ("network", s.network, ("ddp", "fsdp"))):
        if value not in allowed:
            raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    for name in ("bandwidth", "memory_bandwidth", "flops"):
        if not getattr(s, name) > 0:
            raise ValueError(f"{name}: expected a number above 0, got {getattr(s, name)}")
    members_of(s.loss)
