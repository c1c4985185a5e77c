"""Is it only the rate? Plain and CCP, each at the best of some rates and schedules.

The validation classes pick it, for each of the two by the first seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ccp_fast.training.compare import COLUMNS as KNOWN
from ccp_fast.training.compare import Experiment, spread
from ccp_fast.training.config import with_settings
from ccp_fast.training.objective import PRESETS
from ccp_fast.training.paired import paired
from ccp_fast.training.schedule import Schedule
from ccp_fast.training.settings import Config


class Rate(NamedTuple):
    """A learning rate and what becomes of it."""

    lr: float
    schedule: Schedule

    def __str__(self) -> str:
        """`0.001, cosine`."""
        return f"{self.lr:g}, {self.schedule}"


RATES = (Rate(1e-3, "constant"), *(Rate(lr, "cosine") for lr in (5e-4, 1e-3, 2e-3, 4e-3)))
PLAIN, CCP = COLUMNS = "plain", "ccp"


class TunedRivals:
    """Of the losses and seeds of a comparison, in a folder per rate beside its cells; those at its own rate are its."""

    def __init__(self, cells: Experiment, rates: Sequence[Rate] = RATES) -> None:
        self.cells, self.rates = cells, rates

    def at(
        self, rate: Rate, losses: Sequence[str], columns: Sequence[str], seeds: Sequence[int]
    ) -> Experiment:
        """These runs at one rate."""
        base = with_settings(self.cells.base, optimizer__lr=rate.lr, optimizer__schedule=rate.schedule)
        path = self.cells.path
        if base != self.cells.base:
            path = path / "tuned" / (f"lr-{rate.lr:g}" if rate.schedule == "cosine" else f"lr-{rate}")
        return Experiment(path, base, losses, columns, seeds)

    def trials(self, loss: str, column: str) -> dict[Rate, float]:
        """MAP@R on the validation classes by rate, of those that are finished."""
        found = {}
        for rate in self.rates:
            for row in self.at(rate, [loss], [column], self.cells.seeds[:1]).rows():
                found[rate] = row["val_map_at_r"]
        return found

    def best(self, loss: str, column: str) -> Rate | None:
        """None before all have been tried."""
        trials = self.trials(loss, column)
        return max(trials, key=trials.__getitem__) if len(trials) == len(self.rates) else None

    def run(self, run_cell: Callable[[Config, Path], None], jobs: int, say: Callable[[str], None]) -> None:
        """What is not finished: first a run of each rate, then all seeds of the best."""
        for rate in self.rates:
            self.at(rate, self.cells.losses, COLUMNS, self.cells.seeds[:1]).run(run_cell, jobs, say)
        for loss in self.cells.losses:
            for column in COLUMNS:
                best = self.best(loss, column)
                if best is not None:  # it is where one has diverged
                    self.at(best, [loss], [column], self.cells.seeds).run(run_cell, jobs, say)

    def rows(self) -> list[dict[str, Any]]:
        """A row per finished run, with its rate."""
        return [
            {**rate._asdict(), **row}
            for loss in self.cells.losses
            for rate in self.rates
            for row in self.at(rate, [loss], COLUMNS, self.cells.seeds).rows()
        ]

    def markdown(self) -> str:
        """What each rate gave on the validation classes, and the best ones on classes never seen."""
        head = [f"MAP@R, validation classes, seed {self.cells.seeds[0]}", *map(str, self.rates)]
        tried = [_line(head), "|---" * len(head) + "|"]
        head = ["MAP@R, unseen classes", *(text for name in COLUMNS for text in ("rate", KNOWN[name].title))]
        gained = [_line([*head, "difference"]), "|---" * (len(head) + 1) + "|"]
        for loss in self.cells.losses:
            title = PRESETS[loss].title
            texts, values = [title], []
            for column in COLUMNS:
                trials, best = self.trials(loss, column), self.best(loss, column)
                found = (f"{trials[rate]:.3f}" if rate in trials else "–" for rate in self.rates)
                tried.append(_line([f"{title}, {KNOWN[column].title}", *found]))
                values.append({} if best is None else self._unseen(loss, column, best))
                texts += [str(best or "–"), spread(values[-1].values())]
            gained.append(_line([*texts, str(paired(*values) or "–")]))
        return "\n".join([*tried, "", *gained]) + "\n"

    def _unseen(self, loss: str, column: str, rate: Rate) -> dict[int, float]:
        """MAP@R on the test classes by seed."""
        return self.at(rate, [loss], [column], self.cells.seeds).table()[loss][column]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
