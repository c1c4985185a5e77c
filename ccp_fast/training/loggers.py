"""Where numbers are shown beside the run folder: TensorBoard, Weights & Biases.

What a run depends on is in its folder; a logger that fails is left out with a warning, the run goes on.
Another logger is a class with `write` and `close`, its line in `LOGGERS` and its name in `Config.loggers`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from torch.utils.tensorboard import SummaryWriter

from ccp_fast._system.files import write_atomically
from ccp_fast.training.errors import UserError
from ccp_fast.training.metrics import Row
from ccp_fast.training.settings import Config

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
    """A run of the project `ccp-fast`, kept in RUN/wandb; sent only where WANDB_MODE says online.

    Its id is drawn once and kept in the run's folder, so that what goes on is the same run there, and runs of the same
    name are not. The networks of a protocol are a group with the name of the whole.
    """

    def __init__(self, folder: Path, config: Config, first_step: int) -> None:
        import wandb

        whole = folder.parent.name if config.protocol.network is not None else None
        self._run = wandb.init(
            project="ccp-fast",
            name=folder.name if whole is None else f"{whole}/{folder.name}",
            group=whole,
            id=_kept_id(folder / "wandb-id"),
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


def _kept_id(file: Path) -> str:
    """What the file holds, where there is one; else it gets 16 random hexadecimal digits."""
    if not file.exists():
        write_atomically(file, secrets.token_hex(8) + "\n")
    return file.read_text(encoding="utf-8").strip()


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "step" and isinstance(value, (int, float))}
