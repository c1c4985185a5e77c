"""Which checkpoints of a run stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ccp_fast.training.settings import CheckpointsConfig


def needed_steps(steps: Sequence[int], bests: Iterable[int | None], config: CheckpointsConfig) -> set[int]:
    """Of `steps` with a checkpoint, in rising order, those that must not be deleted.

    bests: the best step that each of the newest `keep` names: without it, that one could not be gone on from.
    """
    needed = {*steps[-config.keep :], *(best for best in bests if best is not None)}
    if config.keep_every is not None:
        needed |= {step for step in steps if step % config.keep_every == 0}
    return needed
