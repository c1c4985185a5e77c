"""Which classes a run sees: all of the data set's splits, or one fold of the training classes held out."""

from __future__ import annotations

from ccp_fast.data import EvaluationSet, Splits
from ccp_fast.training.config import Config
from ccp_fast.training.datasets import load_splits
from ccp_fast.training.errors import UserError


def splits_of(config: Config) -> Splits:
    """The splits of a run.

    conventional: nothing is held out, and what is monitored are the test classes.
    reality-check: held out is a contiguous part of the training classes, as large as the others to one class,
    in the place of the data set's own validation classes. UserError for too few.
    """
    splits, protocol = load_splits(config), config.protocol
    if protocol.name == "conventional":
        return splits._replace(val=splits.test)
    if protocol.name == "held-out" or protocol.network is None:
        return splits
    classes, folds = splits.train.num_classes, protocol.count
    if classes < 2 * folds:
        raise UserError(
            f"protocol.networks: expected at most half as many as the {classes} classes, got {folds}"
        )
    first, last = (fold * classes // folds for fold in (protocol.network, protocol.network + 1))
    held_out = range(first, last)
    kept = [c for c in range(classes) if c not in held_out]
    return Splits(
        splits.train.of_classes(kept), EvaluationSet(splits.train.of_classes(held_out)), splits.test
    )
