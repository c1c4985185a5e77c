"""What a run writes of itself: a row for each evaluation and sub-problem, and the final numbers.

The same for one process and for several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ccp_fast._system import environment
from ccp_fast.ccp import SubProblem
from ccp_fast.training.best import Best
from ccp_fast.training.clock import STEP, PhaseClock
from ccp_fast.training.loggers import Loggers
from ccp_fast.training.metrics import MetricLog, Row
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.settings import Config

Summary = dict[str, Any]


def evaluation_row(
    *,
    step: int,
    subproblem: int | None,
    lr: float,
    loss: float,
    retrieval: Mapping[str, Any],
    proxy_spread: float | None,
    clock: PhaseClock,
) -> dict[str, Any]:
    """retrieval: the columns of `Monitor.measure`; loss: the mean since the evaluation before."""
    return {
        "step": step,
        "subproblem": subproblem,
        "lr": lr,
        "loss": loss,
        **retrieval,
        "proxy_spread": proxy_spread,
        "seconds": round(clock.total, 3),
    }


def final_numbers(
    config: Config,
    clock: PhaseClock,
    *,
    step: int,
    best: Best,
    test: Mapping[str, float] | None,
    parameters: int,
) -> Summary:
    """The content of summary.json, after the last step."""
    training = sum(clock.seconds[phase] for phase in STEP)
    return {
        "loss": config.loss.name,
        "method": config.method,
        "seed": config.seed,
        "steps": step,
        "stopped_early": step < config.steps,
        "best_step": best.step,
        "val": {"map_at_r": best.metric if config.protocol.holds_out else None},
        "test": test,
        "parameters": parameters,
        "peak_memory_bytes": environment.peak_memory_bytes(),
        "seconds": {
            "training": training,
            "per_step": training / step,
            "evaluation": clock.seconds["evaluation"],
            "saving": clock.seconds["saving"],
            "cpu": clock.cpu_seconds,
            "shares": clock.shares(),
        },
    }


class Records:
    """Rows go into the run's folder, as JSON lines and CSV, and to its loggers.

    Args:
        run: whose folder and loggers.
        step: where it begins or goes on; what was written of later steps is dropped.
    """

    def __init__(self, run: RunFolder, step: int) -> None:
        self._evaluations, self._subproblems = (
            MetricLog(run.path, name) for name in ("metrics", "subproblems")
        )
        for log in (self._evaluations, self._subproblems):
            log.truncate(step)
        self._loggers = Loggers(run.path, run.config, step + 1)

    def evaluation(self, row: Row) -> None:
        """Write a row."""
        self._evaluations.append(row)
        self._loggers.write(row, "evaluation")

    def subproblems(self, history: Sequence[SubProblem]) -> None:
        """Write those of all so far that are not written yet."""
        for record in history[len(self._subproblems.rows) :]:
            row = {"step": record.step, **asdict(record)}
            self._subproblems.append(row)
            self._loggers.write(row, "subproblem")

    def close(self) -> None:
        """Close the loggers."""
        self._loggers.close()
