"""Rows: what was measured, what it means beside the aims, kept as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ccp_fast.bench.case import Aim, Role

FORMAT = 1


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
    """What was aimed at and what was got; None where the other side is missing."""
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
        if document["format"] == FORMAT:
            rows: list[dict[str, Any]] = document["rows"]
            return rows
        problem = f"format {document['format']}, this version reads {FORMAT}"
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

    @property
    def relative(self) -> float:
        """−0.5: takes half the time."""
        return self.now_ms / self.before_ms - 1


def compare(rows: Sequence[Row], threads: int, before: Sequence[Mapping[str, Any]]) -> list[Change]:
    """Ours now against ours then, for cases of the same shape and number of threads."""
    old = {_key(row): row for row in before if row["threads"] == threads}
    changes = []
    for row in rows:
        was = old.get((row.family, row.name, row.setting, row.shape))
        if was is None:
            continue
        then = next(m for m in was["implementations"] if m["role"] == "ours")
        now = row.ours
        apart = now.p50_ms > then["p80_ms"] and then["p50_ms"] < now.p20_ms
        apart |= now.p50_ms < then["p20_ms"] and then["p50_ms"] > now.p80_ms
        changes.append(
            Change(*row_key(row)[:3], then["p50_ms"], now.p50_ms, apart, then["extra_bytes"], now.extra_bytes)
        )
    return changes


def row_key(row: Row) -> tuple[str, str, str, str]:
    """What must be equal for two runs of a case to be comparable."""
    return row.family, row.name, row.setting, row.shape


def _key(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return row["family"], row["name"], row["setting"], row["shape"]
