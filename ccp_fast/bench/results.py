"""Rows: what was measured, what it means beside the aims, kept as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ccp_fast.bench.case import Aim, Role
from ccp_fast.bench.launch import Kind

FORMAT = 3  # 2 had no floors of kernels; 1 had no precision, and knew the CPU alone
_READABLE = (1, 2, 3)


@dataclass(frozen=True)
class Measured:
    """One implementation in one case. Times in milliseconds per call."""

    name: str
    role: Role
    p20_ms: float
    p50_ms: float
    p80_ms: float
    samples: int
    ratio: float  # time over ours, median over rounds; 1 for ours
    value_error: float | None
    gradient_error: float | None
    extra_bytes: int | None  # peak memory beyond inputs and results; None: not measured
    issue_ms: float | None = None  # what the CPU takes to issue a call; None: the CPU does it all


@dataclass(frozen=True)
class Kernel:
    """What a pass makes a GPU do, `count` times in the same way. Times, work and rates are of one; None: not known."""

    name: str
    kind: Kind
    count: int
    p20_us: float
    p50_us: float
    p80_us: float
    samples: int
    grid: list[int]
    block: list[int]
    registers: int | None  # per thread
    shared_bytes: int | None  # per block
    resident_blocks: int | None  # that a multiprocessor can have at a time
    occupancy: float | None  # percent of its warps, with so many blocks
    tile: str | None  # what a block has in hand at a time
    flops: float | None  # the least it must do
    bytes: float | None
    floor_us: float | None
    floor_from: str | None  # "FLOPs" or "bytes"
    gigabytes_per_second: float | None  # of that work
    teraflops_per_second: float | None


@dataclass(frozen=True)
class GpuFindings:
    """What is found out about our step on a GPU besides its time."""

    forward: list[Kernel]  # of one call; empty: the profiler saw nothing
    backward: list[Kernel]
    graph: str  # "same bits", or why a CUDA graph of the step is not as good
    graph_ms: float | None  # of a replay
    runs: int  # repeated with the same inputs
    differing: int  # of those, with other bits than the first

    @property
    def launches(self) -> tuple[int, int] | None:
        """Kernels of the forward and of the backward pass; None: not seen."""
        if not self.forward:
            return None
        forward, backward = (
            sum(kernel.count for kernel in part if kernel.kind == "kernel")
            for part in (self.forward, self.backward)
        )
        return forward, backward


def label(setting: str, precision: str) -> str:
    """Float32 goes without saying."""
    return setting if precision == "float32" else f"{setting}, {precision}"


@dataclass(frozen=True)
class Row:
    """One case."""

    family: str
    name: str
    setting: str
    shape: str
    note: str
    flops: float
    bytes: float
    floor_ms: float
    floor_from: str  # "FLOPs" or "bytes"
    implementations: list[Measured]
    failed: dict[str, str] = field(default_factory=dict)  # who could not run, and why
    aims: list[dict[str, Any]] = field(default_factory=list)
    precision: str = "float32"
    gpu: GpuFindings | None = None
    wrong: list[str] = field(default_factory=list)  # what is wrong with results of ours, a sentence each

    @property
    def label(self) -> str:
        """Setting and precision."""
        return label(self.setting, self.precision)

    @property
    def ours(self) -> Measured:
        """The package's own implementation."""
        return self.role("ours")[0]

    def role(self, role: Role) -> list[Measured]:
        """All in a role, the fastest first."""
        return sorted((m for m in self.implementations if m.role == role), key=lambda m: m.p50_ms)

    def best(self, role: Role) -> Measured | None:
        """The fastest in a role."""
        return next(iter(self.role(role)), None)

    @property
    def share_of_floor(self) -> float:
        """Floor over ours: 1 would be all that this machine can do."""
        return self.floor_ms / self.ours.p50_ms


def judge(aim: Aim, row: Row) -> dict[str, Any] | None:
    """What was aimed at and what was got; None where the other side, or the figure, is missing."""
    if aim.kind in ("floor", "time", "launches"):
        return _judge_alone(aim, row)
    rival = row.best(aim.against)
    if rival is None:
        return None
    if aim.kind == "memory":
        ours, theirs = row.ours.extra_bytes, rival.extra_bytes
        if ours is None or not theirs:
            return None
        got, met = ours / theirs, ours <= aim.bound * theirs
    else:
        got, met = rival.ratio, rival.ratio >= aim.bound
    return {"kind": aim.kind, "against": rival.name, "bound": aim.bound, "got": got, "met": met}


def _judge_alone(aim: Aim, row: Row) -> dict[str, Any] | None:
    got: float | None
    if aim.kind == "launches":
        launches = row.gpu.launches if row.gpu else None
        got = max(launches) if launches else None
    else:
        got = row.share_of_floor if aim.kind == "floor" else row.ours.p50_ms
    if got is None:
        return None
    met = got >= aim.bound if aim.kind == "floor" else got <= aim.bound
    return {"kind": aim.kind, "against": "ours", "bound": aim.bound, "got": got, "met": met}


def to_json(rows: Iterable[Row], facts: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """Each row keeps device, versions, commit, date and threads: rows of several runs can be put together."""
    return (
        json.dumps({"format": FORMAT, **run, "rows": [{**asdict(row), **facts} for row in rows]}, indent=1)
        + "\n"
    )


def file_name(kind: str, facts: Mapping[str, Any]) -> str:
    """Such as cpu_amd-epyc_2025-01-31.json."""
    device = re.sub(r"[^a-z0-9]+", "-", str(facts["device"]).lower()).strip("-")
    return f"{kind}_{device}_{str(facts['date'])[:10]}.json"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of an earlier run. Raises ValueError in one sentence for anything else."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] in _READABLE:
            rows: list[dict[str, Any]] = document["rows"]
            return rows
        problem = f"format {document['format']}, this version reads {' and '.join(map(str, _READABLE))}"
    except FileNotFoundError:
        problem = "no such file"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise ValueError(f"--compare: expected a file written by `ccp-bench --out`, got {path} ({problem})")


@dataclass(frozen=True)
class Change:
    """One case in two runs."""

    family: str
    name: str
    setting: str
    before_ms: float
    now_ms: float
    clear: bool  # the medians lie outside each other's p20 to p80
    extra_before: int | None
    extra_now: int | None
    precision: str = "float32"

    @property
    def relative(self) -> float:
        """−0.5: takes half the time."""
        return self.now_ms / self.before_ms - 1


def compare(rows: Sequence[Row], threads: int | None, before: Sequence[Mapping[str, Any]]) -> list[Change]:
    """Ours now against ours then, for cases of the same shape, precision and number of threads (None: on a GPU)."""
    old = {_key(row): row for row in before if row["threads"] == threads}
    changes = []
    for row in rows:
        was = old.get(row_key(row))
        if was is None:
            continue
        then = next(m for m in was["implementations"] if m["role"] == "ours")
        now = row.ours
        apart = _apart((then["p20_ms"], then["p50_ms"], then["p80_ms"]), (now.p20_ms, now.p50_ms, now.p80_ms))
        changes.append(
            Change(
                *row_key(row)[:3],
                then["p50_ms"],
                now.p50_ms,
                apart,
                then["extra_bytes"],
                now.extra_bytes,
                row.precision,
            )
        )
    return changes


@dataclass(frozen=True)
class KernelChange:
    """One kernel in two runs of a case."""

    case: str
    part: str  # the pass
    name: str
    before_us: float
    now_us: float
    clear: bool

    @property
    def relative(self) -> float:
        """As of `Change`."""
        return self.now_us / self.before_us - 1


def compare_kernels(rows: Sequence[Row], before: Sequence[Mapping[str, Any]]) -> list[KernelChange]:
    """Kernels of the same name in the same case and pass; rows of older formats have none."""
    old = {_key(row): row for row in before}
    changes = []
    for row in rows:
        was = (old.get(row_key(row)) or {}).get("gpu")
        if row.gpu is None or not was:
            continue
        for part in ("forward", "backward"):
            then = {kernel["name"]: kernel for kernel in reversed(was[part]) if "p50_us" in kernel}
            for kernel in getattr(row.gpu, part):
                if kernel.kind == "kernel" and kernel.name in then:
                    b = then[kernel.name]
                    apart = _apart(
                        (b["p20_us"], b["p50_us"], b["p80_us"]), (kernel.p20_us, kernel.p50_us, kernel.p80_us)
                    )
                    changes.append(
                        KernelChange(
                            f"{row.name}, {row.label}", part, kernel.name, b["p50_us"], kernel.p50_us, apart
                        )
                    )
    return changes


def _apart(before: tuple[float, float, float], now: tuple[float, float, float]) -> bool:
    """Do the medians lie outside each other's p20 to p80, on the same side?"""
    slower = now[1] > before[2] and before[1] < now[0]
    return slower or (now[1] < before[0] and before[1] > now[2])


Key = tuple[str, str, str, str, str]


def row_key(row: Row) -> Key:
    """What must be equal for two runs of a case to be comparable."""
    return row.family, row.name, row.setting, row.shape, row.precision


def _key(row: Mapping[str, Any]) -> Key:
    return row["family"], row["name"], row["setting"], row["shape"], row.get("precision", "float32")
