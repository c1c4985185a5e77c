"""Rows of numbers by step, kept as JSON lines, CSV and TensorBoard events."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from ccp_fast.training.files import write_atomically

Row = Mapping[str, Any]  # numbers, strings and None, one of them the "step"


class MetricLog:
    """`NAME.jsonl` and `NAME.csv`: one row per step; all rows have the same keys."""

    def __init__(self, folder: Path, name: str) -> None:
        self._jsonl, self._csv = folder / f"{name}.jsonl", folder / f"{name}.csv"
        self.rows: list[Row] = read_rows(self._jsonl)

    def append(self, row: Row) -> None:
        """Add a row."""
        self.rows.append(row)
        with self._jsonl.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with self._csv.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, row.keys())
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)

    def truncate(self, step: int) -> None:
        """Drop what was written after a step, where a run goes on from an older checkpoint."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        write_atomically(self._jsonl, "".join(json.dumps(row) + "\n" for row in self.rows))
        write_atomically(self._csv, to_csv(self.rows))


def to_csv(rows: Sequence[Row]) -> str:
    """Rows with the same keys, with a header."""
    if not rows:
        return ""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
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


class Scalars:
    """The numbers of the rows in TensorBoard."""

    def __init__(self, folder: Path, first_step: int) -> None:
        # purge_step: TensorBoard forgets what an interrupted run wrote from there on.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, row: Row, group: str) -> None:
        """Every number of the row but its step."""
        for name, value in row.items():
            if name != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{name}", value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
