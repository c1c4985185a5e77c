"""Every method on `glyphs` under one budget: `python docs/methods_table.py` trains what is missing, writes the table.

    python docs/methods_table.py --jobs 2    runs at a time, each with one thread
    python docs/methods_table.py --finished  no training: what the folder of runs has

The runs are those of `guide_runs.py`, with seeds 0, 1 and 2. A row per run goes to benchmarks/results/methods.csv, and
the table over the seeds into docs/results.md, between its two marks.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from guide_runs import FOLDER, RUNS, SEEDS, STEPS, Finished, obtain
from marked import NOT_YET, put_into

from ccp_fast._system.files import write_atomically
from ccp_fast.training.compare import run_in_a_process, spread
from ccp_fast.training.errors import UserError
from ccp_fast.training.metrics import to_csv
from ccp_fast.training.settings import Config

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "methods.csv"
PAGE = ROOT / "docs" / "results.md"
NAME = "methods table"

Row = dict[str, Any]


def row(name: str, seed: int, one: Finished) -> Row:
    """What is kept of a run."""
    summary = one.run.summary
    assert summary is not None
    seconds, test = summary["seconds"], summary["test"]
    # The clock counts CPU seconds with the evaluations; their share of that time is taken out again.
    cpu = seconds["cpu"] * seconds["training"] / (seconds["training"] + seconds["evaluation"])
    return {
        "run": name,
        "seed": seed,
        "steps": summary["steps"],
        "best_step": summary["best_step"],
        "val_map_at_r": summary["val"]["map_at_r"],
        "test_map_at_r": test["map_at_r"],
        "test_precision_at_1": test["precision_at_1"],
        "test_nmi": test["nmi"],
        "cpu_milliseconds_a_step": round(1e3 * cpu / summary["steps"], 3),
        "peak_memory_mib": summary["peak_memory_bytes"] >> 20,
        "commit": one.run.commit,
        "command": one.command,
    }


def train_all(steps: int, folder: Path, jobs: int, train: Callable[[Config, Path], None] | None) -> list[Row]:
    """A row per finished run, in the order of `RUNS`; all runs of a seed before those of the next."""
    todo = [(name, seed) for seed in SEEDS for name in RUNS]

    def one(task: tuple[str, int]) -> Row | None:
        name, seed = task
        found = obtain(name, RUNS[name], steps, folder, seed=seed, train=train)
        if found is None:
            return None
        made = row(name, seed, found)
        print(f"{name}, seed {seed}: MAP@R {made['test_map_at_r']:.4f}", flush=True)
        return made

    with ThreadPoolExecutor(jobs) as pool:
        rows = [made for made in pool.map(one, todo) if made is not None]
    return sorted(rows, key=lambda r: (list(RUNS).index(r["run"]), r["seed"]))


def table(rows: Iterable[Row]) -> str:
    """A line per method: means over the seeds, with the standard deviation of the accuracies."""
    by_run: dict[str, list[Row]] = {}
    for one in rows:
        by_run.setdefault(one["run"], []).append(one)
    if not by_run:
        return NOT_YET
    lines = [
        "| | MAP@R | R@1 | NMI | CPU ms a step | memory, MiB | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, of_run in by_run.items():
        columns = {key: [float(one[key]) for one in of_run] for key in of_run[0] if key not in TEXT}
        accuracies = [spread(columns[f"test_{key}"]) for key in ("map_at_r", "precision_at_1", "nmi")]
        costs = [fmean(columns["cpu_milliseconds_a_step"]), fmean(columns["peak_memory_mib"])]
        cells = [RUNS[name].title, *accuracies, f"{costs[0]:.1f}", f"{costs[1]:.0f}", str(len(of_run))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace(" (1 seed)", "") + "\n"


TEXT = {"run", "commit", "command"}


def kept() -> list[Row]:
    """The rows in the repository; none before the first time."""
    if not ROWS.exists():
        return []
    with ROWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main(arguments: list[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, default 1")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each run, default {STEPS}")
    parser.add_argument("--runs", type=Path, default=FOLDER, help=f"default {FOLDER}")
    parser.add_argument("--finished", action="store_true", help="train nothing")
    options: Any = parser.parse_args(arguments)
    try:
        train = None if options.finished else run_in_a_process
        rows = train_all(options.steps, options.runs, options.jobs, train)
        if not rows:
            raise UserError(f"{options.runs}: no finished run")
        write_atomically(ROWS, to_csv(rows))
        put_into(PAGE, NAME, table(kept()))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
