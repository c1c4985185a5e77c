"""Where numbers are shown beside the run folder: TensorBoard, Weights & Biases.

What a run depends on is in its folder; a logger that fails is left out with a warning, the run goes on.
Another logger is a class with `write` and `close`, its line in `LOGGERS` and its name in `Config.loggers`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from ccp_fast.training.config import Config
from ccp_fast.training.errors import UserError
from ccp_fast.training.metrics import Row

log = logging.getLogger(__name__)


class Logger(Protocol):
    """A place for rows of numbers."""

    def write(self, row: Row, group: str) -> None:
        """A row, at its "step"; `group` says what it is of: "evaluation", "subproblem"."""

    def close(self) -> None:
        """Flush, and give back what is held."""


class TensorBoard:
    """Events in RUN/tensorboard."""

    def __init__(self, folder: Path, config: Config, first_step: int) -> None:
        # purge_step: TensorBoard forgets what an interrupted run wrote from there on.
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first_step)

    def write(self, row: Row, group: str) -> None:
        """Every number of the row but its step."""
        for name, value in _numbers(row).items():
            self._writer.add_scalar(f"{group}/{name}", value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `ccp-fast`, kept in RUN/wandb; sent only where WANDB_MODE says online."""

    def __init__(self, folder: Path, config: Config, first_step: int) -> None:
        import wandb

        self._run = wandb.init(
            project="ccp-fast",
            name=folder.name,
            id=folder.name,
            resume="allow",
            dir=str(folder),
            config=config.model_dump(mode="json"),
            mode=os.environ.get("WANDB_MODE", "offline"),
        )
        self._run.define_metric("*", step_metric="step")  # its own steps cannot go back where a run went on

    def write(self, row: Row, group: str) -> None:
        """Every number of the row."""
        self._run.log(
            {f"{group}/{name}": value for name, value in _numbers(row).items()} | {"step": row["step"]}
        )

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, Config, int], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}


def check_loggers(config: Config) -> None:
    """UserError for a logger whose package is not installed."""
    if "wandb" in config.loggers and importlib.util.find_spec("wandb") is None:
        raise UserError("loggers: wandb is not installed: pip install 'ccp-fast[wandb]'")


class Loggers:
    """All that a run asks for."""

    def __init__(self, folder: Path, config: Config, first_step: int) -> None:
        self._loggers: dict[str, Logger] = {}
        for name in config.loggers:
            with self._or_without(name):
                self._loggers[name] = LOGGERS[name](folder, config, first_step)

    def write(self, row: Row, group: str) -> None:
        """To each."""
        for name, logger in list(self._loggers.items()):
            with self._or_without(name):
                logger.write(row, group)

    def close(self) -> None:
        """Each."""
        for name, logger in list(self._loggers.items()):
            with self._or_without(name):
                logger.close()

    @contextmanager
    def _or_without(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever it is: a run of days must not end by it
            log.warning("logger %s is left out from here on: %s", name, error)
            self._loggers.pop(name, None)


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, (int, float))}
