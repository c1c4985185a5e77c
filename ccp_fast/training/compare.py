"""Experiments: every loss, column and seed in a run folder of its own, then one table.

A comparison can be stopped and started again at any time: finished cells are kept, unfinished ones resumed.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ccp_fast._system.files import write_atomically
from ccp_fast.training.config import nearest, to_yaml, with_settings
from ccp_fast.training.errors import Diverged, UserError
from ccp_fast.training.metrics import to_csv
from ccp_fast.training.objective import PRESETS
from ccp_fast.training.paired import CONFIDENCE, Paired, paired
from ccp_fast.training.run_folder import RunFolder, check_prolongable
from ccp_fast.training.settings import LOSS_ALIASES, Config

LARGE_BATCH = {"batch__classes": 32, "batch__samples": 4, "optimizer__schedule": "cosine"}

STOPPED = 130  # exit code of a run that Ctrl-C stopped
DIVERGED = 3  # and of one whose loss is no number any more


class Column(NamedTuple):
    """A way to train, as changes to the base configuration."""

    title: str
    changes: dict[str, Any]
    prolongs: str | None = None  # goes on where this column's run ended,
    as_long_as: str | None = None  # until it has taken as much time as this column


class Time(NamedTuple):
    """What columns are compared by, and may be given equal amounts of."""

    title: str
    row: str  # in the rows of an experiment
    summary: str  # among the seconds of a run


# Other processes on the machine hardly move CPU seconds. Of the work of a GPU these know nothing.
CPU_TIME = Time("CPU seconds of training", "cpu_seconds", "cpu")
WALL_TIME = Time("Seconds of training", "training_seconds", "training")


COLUMNS = {
    "plain": Column("plain", {"method": "plain"}),
    "proxies": Column(
        "proxies, never re-initialised", {"method": "ccp", "ccp__reinitialize": False, "ccp__lam": 0.0}
    ),
    "reinit": Column("re-initialised, λ = 0", {"method": "ccp", "ccp__lam": 0.0}),
    "ccp": Column("full CCP", {"method": "ccp"}),
    "ccp-memory": Column("full CCP, pool from memory", {"method": "ccp", "ccp__pool": "memory"}),
    "unseeded": Column("full CCP, k-center without seeds", {"method": "ccp", "ccp__seeded": False}),
    "plain-32x4": Column("plain, 32×4, cosine", {"method": "plain", **LARGE_BATCH}),
    "ccp-32x4": Column("full CCP, 32×4, cosine", {"method": "ccp", **LARGE_BATCH}),
    "alternating": Column("alternating projections", {"method": "alternating"}),
    "intra-batch": Column("message passing, its own loss", {"method": "intra-batch"}),
    "xbm": Column("cross-batch memory", {"method": "xbm"}),
    "plain-time": Column("plain, equal time", {"method": "plain"}, prolongs="plain", as_long_as="ccp"),
}


@dataclass(frozen=True)
class Cell:
    """One run of the comparison."""

    loss: str
    column: str
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.loss}_{self.column}_seed{self.seed}"


class Experiment:
    """Cells over losses × columns × seeds, in `path/cells`, and the table over those that are finished."""

    def __init__(
        self, path: Path, base: Config, losses: Sequence[str], columns: Sequence[str], seeds: Sequence[int]
    ) -> None:
        self.path, self.base = path, base
        self.losses = [_known("--losses", LOSS_ALIASES.get(name, name), PRESETS) for name in losses]
        self.columns = [_known("--columns", name, COLUMNS) for name in columns]
        self.seeds = list(seeds)
        self.time = CPU_TIME if base.compute.device == "cpu" else WALL_TIME
        if base.loss.options and base.loss.name not in self.losses:
            raise UserError(
                f"loss.options: expected {base.loss.name}, whose they are, among --losses, "
                f"got {', '.join(self.losses)}; loss.options_of.{self.losses[0]} has those of another"
            )
        for name in self.columns:
            for needed in (COLUMNS[name].prolongs, COLUMNS[name].as_long_as):
                if needed is not None and needed not in self.columns:
                    raise UserError(f"--columns: {name!r} needs {needed!r} beside it")
            prolonged = COLUMNS[name].prolongs
            if prolonged is not None:  # told before anything is trained
                check_prolongable(
                    with_settings(base, **COLUMNS[prolonged].changes), f"--columns: {prolonged!r}"
                )

    def cells(self, *, timed: bool) -> list[Cell]:
        """Cells whose number of steps is fixed, or (timed) that of those that wait for others' times."""
        names = [name for name in self.columns if (COLUMNS[name].as_long_as is not None) == timed]
        # Seeds outermost: a table over fewer seeds is complete early.
        return [Cell(loss, name, seed) for seed in self.seeds for loss in self.losses for name in names]

    def folder(self, cell: Cell) -> Path:
        """The run folder of a cell."""
        return self.path / "cells" / cell.name

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """Final numbers of a cell, None if it is not finished."""
        folder = self.folder(cell)
        return RunFolder.open(folder).summary if folder.exists() else None

    def wanted(self, cell: Cell) -> Config:
        """Settings of a cell, the number of steps of a timed one as it has begun: it comes from measured times."""
        config, folder = self.config(cell), self.folder(cell)
        if COLUMNS[cell.column].as_long_as is None or not folder.exists():
            return config
        return with_settings(config, steps=RunFolder.open(folder).config.steps)

    def config(self, cell: Cell) -> Config:
        """Settings of a cell; of a timed one only once the cells it is timed by are finished."""
        column = COLUMNS[cell.column]
        options = self.base.loss.options if cell.loss == self.base.loss.name else {}
        config = with_settings(
            self.base, loss__name=cell.loss, loss__options=options, seed=cell.seed, **column.changes
        )
        if column.prolongs is None or column.as_long_as is None:
            return config
        first, long = (
            self.summary(Cell(cell.loss, name, cell.seed)) for name in (column.prolongs, column.as_long_as)
        )
        if first is None or long is None:
            raise UserError(f"{cell.name}: the cells it is timed by are not finished")
        took, may_take = (summary["seconds"][self.time.summary] for summary in (first, long))
        steps = round(first["steps"] * may_take / took)
        return with_settings(config, steps=max(first["steps"], steps))

    def run(self, run_cell: Callable[[Config, Path], None], jobs: int, say: Callable[[str], None]) -> None:
        """Run what is not finished, `jobs` cells at a time. UserError if a cell has other settings.

        A cell that diverges is left unfinished, and the others go on.
        """
        for timed in (False, True):
            cells = [cell for cell in self.cells(timed=timed) if self._steps_are_known(cell)]
            for cell in cells:
                if self.folder(cell).exists():
                    RunFolder.open(self.folder(cell)).check_same_settings(self.wanted(cell))
            todo = [cell for cell in cells if self.summary(cell) is None]
            say(
                f"{len(cells) - len(todo)} cells finished, {len(todo)} to go"
                + (" (equal time)" if timed else "")
            )
            for done, cell in enumerate(self._run_all(todo, run_cell, jobs, say), 1):
                summary = self.summary(cell)
                if summary is None:
                    continue
                map_at_r, seconds = summary["test"]["map_at_r"], summary["seconds"]["training"]
                say(f"[{done}/{len(todo)}] {cell.name}: MAP@R {map_at_r:.4f} in {seconds:.0f} s")

    def _run_all(
        self,
        cells: list[Cell],
        run_cell: Callable[[Config, Path], None],
        jobs: int,
        say: Callable[[str], None],
    ) -> Iterator[Cell]:
        for cell in cells:
            self._prolong(cell)
        with ThreadPoolExecutor(jobs) as pool:
            running = {pool.submit(run_cell, self.wanted(cell), self.folder(cell)): cell for cell in cells}
            try:
                for finished in as_completed(running):
                    try:
                        finished.result()
                    except Diverged as error:
                        say(str(error))
                    yield running[finished]
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _steps_are_known(self, cell: Cell) -> bool:
        """Not so for a timed cell where one that it is timed by has diverged."""
        column = COLUMNS[cell.column]
        waited_for = [name for name in (column.prolongs, column.as_long_as) if name is not None]
        return all(self.summary(Cell(cell.loss, name, cell.seed)) is not None for name in waited_for)

    def _prolong(self, cell: Cell) -> None:
        first = COLUMNS[cell.column].prolongs
        if first is not None and not self.folder(cell).exists():
            finished = RunFolder.open(self.folder(Cell(cell.loss, first, cell.seed)))
            RunFolder.prolong(self.folder(cell), finished, self.config(cell).steps)

    def rows(self) -> list[dict[str, Any]]:
        """A row per finished cell."""
        rows = []
        for cell in self.cells(timed=False) + self.cells(timed=True):
            summary = self.summary(cell)
            if summary is not None:
                rows.append(
                    {
                        "loss": cell.loss,
                        "column": cell.column,
                        "seed": cell.seed,
                        "steps": summary["steps"],
                        "best_step": summary["best_step"],
                        "val_map_at_r": summary["val"]["map_at_r"],
                        **{
                            f"test_{name}": value
                            for name, value in summary["test"].items()
                            if name != "num_queries"
                        },
                        "training_seconds": round(summary["seconds"]["training"], 3),
                        "cpu_seconds": round(summary["seconds"]["cpu"], 3),
                        "commit": RunFolder.open(self.folder(cell)).commit,
                    }
                )
        return rows

    def table(self, key: str = "test_map_at_r") -> dict[str, dict[str, dict[int, float]]]:
        """Values by loss, column and seed."""
        table: dict[str, dict[str, dict[int, float]]] = {
            loss: {name: {} for name in self.columns} for loss in self.losses
        }
        for row in self.rows():
            table[row["loss"]][row["column"]][row["seed"]] = row[key]
        return table

    def differences(self, key: str = "test_map_at_r") -> dict[str, dict[str, Paired | None]]:
        """Of every other column to the first, by loss and column, paired by seed."""
        first, *others = self.columns
        return {
            loss: {name: paired(by_column[first], by_column[name]) for name in others}
            for loss, by_column in self.table(key).items()
        }

    def markdown(self) -> str:
        """Tables with a line per loss: MAP@R on the test classes, what it gained, and the seconds it took."""
        titles = [COLUMNS[name].title for name in self.columns]
        accuracies = _texts(self.table(), spread)
        seconds = _texts(self.table(self.time.row), lambda values: spread(values, 0))
        tables = [
            _markdown("MAP@R, unseen classes", titles, accuracies),
            _markdown(self.time.title, titles, seconds),
        ]
        gains = self.differences()
        if any(gain for by_column in gains.values() for gain in by_column.values()):
            texts = {loss: [str(gain or "–") for gain in of.values()] for loss, of in gains.items()}
            tables.insert(1, _markdown(f"MAP@R, difference to {titles[0]}", titles[1:], texts))
        seeds = ", ".join(map(str, self.seeds))
        step = "step best on the validation classes" if self.base.protocol.holds_out else "last step"
        tables.append(
            f"Mean ± standard deviation over the seeds {seeds}, at the {step}; "
            f"differences with their {CONFIDENCE:.0%} interval, paired by seed (Student's t).\n"
        )
        return "\n".join(tables)

    def write_tables(self) -> None:
        """results.csv (a row per cell) and table.md."""
        write_atomically(self.path / "results.csv", to_csv(self.rows()))
        write_atomically(self.path / "table.md", self.markdown())


def _texts(
    table: dict[str, dict[str, dict[int, float]]], text: Callable[[Collection[float]], str]
) -> dict[str, list[str]]:
    """A text for the values of each cell."""
    return {
        loss: [text(over_seeds.values()) for over_seeds in by_column.values()]
        for loss, by_column in table.items()
    }


def _markdown(corner: str, titles: Sequence[str], texts: Mapping[str, list[str]]) -> str:
    """A table with a line per loss."""
    lines = [f"| {corner} | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    lines += [f"| {PRESETS[loss].title} | {' | '.join(cells)} |" for loss, cells in texts.items()]
    return "\n".join(lines) + "\n"


def spread(values: Collection[float], digits: int = 3) -> str:
    """`.712 ±.004`, the standard deviation of a sample; a note where there are fewer than two values."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else f"{mean} (1 seed)"


def run_in_a_process(config: Config, path: Path) -> None:
    """Train one cell, or go on with it, in a process of its own: cells cannot disturb each other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.parent / f"{path.name}.yaml"
    write_atomically(file, to_yaml(config))
    command = [sys.executable, "-m", "ccp_fast.cli.train", "--quiet", "--config", str(file)]
    command += ["--out", str(path), "--resume", "auto"]
    # The threads of scikit-learn's k-means as well.
    environment = {**os.environ, "OMP_NUM_THREADS": str(config.threads or os.cpu_count() or 1)}
    result = subprocess.run(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if result.returncode == STOPPED:
        raise KeyboardInterrupt
    if result.returncode:
        last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise (Diverged if result.returncode == DIVERGED else UserError)(f"{path.name}: {last}")


def _known(option: str, name: str, known: dict[str, Any]) -> str:
    if name not in known:
        raise UserError(f"{option}: expected some of {', '.join(known)}, got {name!r}{nearest(name, known)}")
    return name
