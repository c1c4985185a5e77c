"""Which checkpoints a run writes, and which stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ccp_fast.training.best import Best
from ccp_fast.training.settings import CheckpointsConfig, Config


def is_saved(step: int, best: Best, config: Config) -> bool:
    """Whether a checkpoint follows the evaluation at a step, of which `best` has heard."""
    c = config.checkpoints
    if step == config.steps or best.ends(config):
        return True
    if config.protocol.holds_out and best.step == step:
        return True  # it may be what is reported
    return step % (c.every * config.evaluation.every) == 0 or _is_kept_for_good(step, c)


def needed_steps(steps: Sequence[int], bests: Iterable[int | None], config: CheckpointsConfig) -> set[int]:
    """Of `steps` with a checkpoint, in rising order, those that must not be deleted.

    bests: the best step that each of the newest `keep` names: without it, that one could not be gone on from.
    """
    needed = {*steps[-config.keep :], *(best for best in bests if best is not None)}
    return needed | {step for step in steps if _is_kept_for_good(step, config)}


def _is_kept_for_good(step: int, config: CheckpointsConfig) -> bool:
    return config.keep_every is not None and step % config.keep_every == 0
