"""The checkpoints of a run over several processes: a folder for each step, of which some stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from ccp_fast.training.retention import needed_steps
from ccp_fast.training.settings import CheckpointsConfig


class Checkpoints:
    """step-00004000 and so on, in the `checkpoints` of a run's folder; which stay is as in a run of one process."""

    def __init__(self, run: Path, config: CheckpointsConfig) -> None:
        self._folder, self._config = run / "checkpoints", config

    def at(self, step: int) -> Path:
        """Where that of a step is, or is written to."""
        return self._folder / f"step-{step:08d}"

    def latest(self) -> Path | None:
        """The newest: a folder has its name once it is whole."""
        every = self._every()
        return every[-1] if every else None

    def prune(self, bests: Iterable[int | None]) -> None:
        """Delete what nothing needs any more, on one rank; bests: the best step that each of the newest names."""
        folders = {_step_of(path): path for path in self._every()}
        for step in folders.keys() - needed_steps(list(folders), bests, self._config):
            shutil.rmtree(folders[step])

    def _every(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("step-*") if path.name[5:].isdecimal())


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
