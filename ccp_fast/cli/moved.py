"""Settings beside `--resume RUN`: those of the machine that a run goes on on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccp_fast.training.config import MOVABLE, differing, load_config
from ccp_fast.training.errors import UserError
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.settings import Config

REFUSED = (
    "--resume: a run goes on with the settings it has; beside it give at most --data-root, or --set with "
    f"{', '.join(MOVABLE)}"
)


def moved_settings(
    run: Path, settings: list[str] | None, data_root: Path | None, others: Sequence[object] = ()
) -> Config:
    """The settings of a run with what is given beside it; UserError for what a run cannot change, as `others`."""
    if all(value is None for value in others):
        stored = RunFolder.open(run).config
        wanted = load_config(
            settings=settings or (), flags={"data.root": data_root and data_root.resolve()}, base=stored
        )
        if set(MOVABLE).issuperset(differing(stored, wanted)):
            return wanted
    raise UserError(REFUSED)
