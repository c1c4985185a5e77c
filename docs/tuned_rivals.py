"""Is it only the rate? The plain loss at the best of some rates, each decaying along a cosine, and CCP at that one.

The validation classes pick the rate, for the plain loss and the first seed: CCP trains at what suits its rival.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ccp_fast.training.compare import Experiment, spread
from ccp_fast.training.config import Config, with_settings
from ccp_fast.training.objective import PRESETS

RATES = (5e-4, 1e-3, 2e-3, 4e-3)
PLAIN, CCP = COLUMNS = "plain", "ccp"


class TunedRivals:
    """Of the losses and seeds of a comparison, in a folder per rate beside its cells."""

    def __init__(self, cells: Experiment, rates: Sequence[float] = RATES) -> None:
        self.cells, self.rates = cells, rates

    def at(
        self, rate: float, losses: Sequence[str], columns: Sequence[str], seeds: Sequence[int]
    ) -> Experiment:
        """These runs at one rate."""
        base = with_settings(self.cells.base, optimizer__lr=rate, optimizer__schedule="cosine")
        return Experiment(self.cells.path / "tuned" / f"lr-{rate:g}", base, losses, columns, seeds)

    def trials(self, loss: str) -> dict[float, float]:
        """MAP@R on the validation classes by rate, of those that are finished."""
        found = {}
        for rate in self.rates:
            for row in self.at(rate, [loss], [PLAIN], self.cells.seeds[:1]).rows():
                found[rate] = row["val_map_at_r"]
        return found

    def best(self, loss: str) -> Experiment | None:
        """Plain and CCP at the best rate; None before all have been tried."""
        trials = self.trials(loss)
        if len(trials) < len(self.rates):
            return None
        return self.at(max(trials, key=trials.__getitem__), [loss], COLUMNS, self.cells.seeds)

    def run(self, run_cell: Callable[[Config, Path], None], jobs: int, say: Callable[[str], None]) -> None:
        """What is not finished: first a run of each rate, then all seeds of the best."""
        for rate in self.rates:
            self.at(rate, self.cells.losses, [PLAIN], self.cells.seeds[:1]).run(run_cell, jobs, say)
        for loss in self.cells.losses:
            chosen = self.best(loss)
            assert chosen is not None
            chosen.run(run_cell, jobs, say)

    def rows(self) -> list[dict[str, Any]]:
        """A row per finished run, with its rate."""
        return [
            {"lr": rate, **row}
            for loss in self.cells.losses
            for rate in self.rates
            for row in self.at(rate, [loss], COLUMNS, self.cells.seeds).rows()
        ]

    def markdown(self) -> str:
        """What each rate gave on the validation classes, and the best one on classes never seen."""
        tried = [f"| MAP@R, validation classes, seed {self.cells.seeds[0]} |"]
        tried[0] += "".join(f" {rate:g} |" for rate in self.rates)
        tried.append("|---" * (len(self.rates) + 1) + "|")
        gained = ["| MAP@R, unseen classes | rate | plain | full CCP | difference |", "|---|---|---|---|---|"]
        for loss in self.cells.losses:
            title, trials = PRESETS[loss].title, self.trials(loss)
            values = [f"{trials[rate]:.3f}" if rate in trials else "–" for rate in self.rates]
            tried.append(f"| {title} | {' | '.join(values)} |")
            chosen = self.best(loss)
            if chosen is not None:
                by_column = chosen.table()[loss]
                texts = [spread(by_column[name].values()) for name in COLUMNS]
                gain = chosen.differences()[loss][CCP]
                rate = chosen.base.optimizer.lr
                gained.append(f"| {title} | {rate:g} | {' | '.join(texts)} | {gain or '–'} |")
        return "\n".join([*tried, "", *gained]) + "\n"
