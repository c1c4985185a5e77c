"""Which classes a run sees: all of the data set's splits, or one fold of the training classes held out."""

from __future__ import annotations

from ccp_fast.data import EvaluationSet, Splits
from ccp_fast.training.datasets import checked, load_parts, load_splits
from ccp_fast.training.errors import UserError
from ccp_fast.training.settings import Config


def splits_of(config: Config) -> Splits:
    """The splits of a run.

    conventional: nothing is held out.
    reality-check: held out is a contiguous part of the training classes, as large as the others to one class.
    In both a data set's own validation classes take no part. UserError for too few classes.
    """
    protocol = config.protocol
    if protocol.name == "held-out":
        return load_splits(config)
    parts = load_parts(config.data)
    if protocol.name == "conventional":
        return checked(Splits(parts.train, None, parts.test))
    classes, folds = parts.train.num_classes, protocol.count
    if classes < 2 * folds:
        raise UserError(
            f"protocol.networks: expected at most half as many as the {classes} classes, got {folds}"
        )
    fold = protocol.network or 0
    held_out = range(fold * classes // folds, (fold + 1) * classes // folds)
    kept = [c for c in range(classes) if c not in held_out]
    val = EvaluationSet(parts.train.of_classes(held_out))
    return checked(Splits(parts.train.of_classes(kept), val, parts.test))
