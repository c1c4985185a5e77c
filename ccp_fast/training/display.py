"""What is seen while a run goes on: a progress bar, and a table that grows by a row per evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ccp_fast.training.methods import title
from ccp_fast.training.settings import Config

_COLUMNS = (  # 78 characters and a star: fits an 80-column terminal
    ("step", 6, "{step:d}"),
    ("phase", 16, "{phase}"),
    ("loss", 9, "{loss:.4f}"),
    ("MAP@R seen", 12, "{train_map_at_r}"),
    ("MAP@R new", 11, "{val_map_at_r}"),
    ("P@1 new", 9, "{val_precision_at_1}"),
    ("spread", 8, "{spread}"),
    ("s", 6, "{seconds:.0f}"),
)


class TrainingDisplay:
    """The lines of one run."""

    def __init__(self, console: Console, progress: Progress | None, config: Config) -> None:
        self._console, self._progress, self._method = console, progress, config.method
        self._task = progress.add_task("", total=config.steps) if progress else None

    def header(self) -> None:
        """Column titles."""
        self._console.print(
            "".join(name.rjust(width) for name, width, _ in _COLUMNS), style="bold", highlight=False
        )

    def step(self, step: int, loss: float) -> None:
        """After every step."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step, description=f"loss {loss:.4f}")

    def row(self, row: Mapping[str, Any], *, is_best: bool) -> None:
        """After every evaluation; a star marks the best step so far."""
        values = {
            **row,
            "phase": phase(self._method, row["subproblem"]),
            "spread": _number(row["proxy_spread"], 3),
            **{
                name: _number(row[name], 4)
                for name in ("train_map_at_r", "val_map_at_r", "val_precision_at_1")
            },
        }
        line = "".join(form.format(**values).rjust(width) for _, width, form in _COLUMNS)
        self._console.print(f"{line} {'*' if is_best else ''}".rstrip(), highlight=False, markup=False)


class Display:
    """Where a run shows itself; `quiet`: nowhere."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.console = Console(quiet=quiet)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def training(self, config: Config, step: int) -> Iterator[TrainingDisplay]:
        """The bar (on a terminal only) and the table, from a step on."""
        self.say(
            f"{title(config)}: {config.steps} steps of {config.batch.classes}x{config.batch.samples} images"
            + (f", going on from step {step}" if step else "")
        )
        if not self.console.is_terminal:
            shown = TrainingDisplay(self.console, None, config)
            shown.header()
            yield shown
            return
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            shown = TrainingDisplay(self.console, progress, config)
            shown.header()
            yield shown


def phase(method: str, subproblem: int | None) -> str:
    """The phase a row was measured in."""
    if subproblem is None:
        return method
    return "warm start" if subproblem < 0 else f"sub-problem {subproblem}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
