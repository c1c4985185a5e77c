"""The checkpoints of a run over several processes: a folder for each step, of which some stay."""

from __future__ import annotations

import shutil
from pathlib import Path

from ccp_fast.training.config import CheckpointsConfig


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

    def prune(self, best_step: int | None) -> None:
        """Delete what nothing needs any more; on one rank."""
        c = self._config
        needed = {path.name for path in self._every()[-c.keep :]}
        if best_step is not None:
            needed.add(self.at(best_step).name)
        if c.keep_every is not None:
            needed |= {path.name for path in self._every() if _step_of(path) % c.keep_every == 0}
        for path in self._every():
            if path.name not in needed:
                shutil.rmtree(path)

    def _every(self) -> list[Path]:
        return sorted(path for path in self._folder.glob("step-*") if path.name[5:].isdecimal())


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
