"""Rows of numbers by step, kept as JSON lines and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccp_fast._system.files import append, write_atomically

Row = Mapping[str, Any]  # numbers, strings and None, one of them the "step"


class MetricLog:
    """`NAME.jsonl` and `NAME.csv`: one row per step; all rows have the same keys."""

    def __init__(self, folder: Path, name: str) -> None:
        self._jsonl, self._csv = folder / f"{name}.jsonl", folder / f"{name}.csv"
        self.rows: list[Row] = read_rows(self._jsonl)

    def append(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        append(self._jsonl, json.dumps(row) + "\n")
        append(self._csv, to_csv([row], header=len(self.rows) == 1))

    def truncate(self, step: int) -> None:
        """Drop what was written after a step, where a run goes on from an older checkpoint."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        write_atomically(self._jsonl, "".join(json.dumps(row) + "\n" for row in self.rows))
        write_atomically(self._csv, to_csv(self.rows))


def to_csv(rows: Sequence[Row], *, header: bool = True) -> str:
    """Rows with the same keys."""
    if not rows:
        return ""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file up to the first that is not whole: a killed run may leave half a line."""
    rows: list[Row] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
