"""What is measured while a run trains: retrieval among classes held out, and among some that are trained on.

CCP goes by it, and it picks the step that is reported: so never among the test classes (A metric learning reality
check, arXiv 2003.08505, section 2.3, on what "best on the test set" does to a comparison).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ccp_fast.data import EvaluationSet, ImageSource, Splits
from ccp_fast.training.metrics import Row
from ccp_fast.training.order import shuffled
from ccp_fast.training.settings import Config

MONITORED = ("map_at_r", "r_precision", "precision_at_1")  # of the classes held out


class Monitor:
    """The classes of a run that are looked at while it trains.

    Attributes:
        held_out: never trained on; None under the protocol conventional.
        seen: `evaluation.train_classes` of those trained on that have several images; None if there are none.
    """

    def __init__(self, config: Config, splits: Splits) -> None:
        self.held_out = splits.val
        found = _found(splits.train, by_hash=self.held_out is None)[: config.evaluation.train_classes]
        self.seen = EvaluationSet(splits.train.of_classes(sorted(found))) if found else None

    def measure(
        self, retrieval: Callable[[EvaluationSet, tuple[str, ...]], Mapping[str, float]]
    ) -> dict[str, Any]:
        """The columns of a row; None are those of classes held out, or seen, where there are none."""
        held_out: Mapping[str, float | None] = dict.fromkeys(MONITORED)
        if self.held_out is not None:
            held_out = retrieval(self.held_out, MONITORED)
        return {
            "train_map_at_r": None if self.seen is None else retrieval(self.seen, ("map_at_r",))["map_at_r"],
            **{f"val_{name}": held_out[name] for name in MONITORED},
        }


def monitored(row: Row) -> float:
    """The number that CCP and the choice of a step go by: of the classes held out, or else of those trained on."""
    value: float = row["train_map_at_r"] if row["val_map_at_r"] is None else row["val_map_at_r"]
    return value


def _found(images: ImageSource, *, by_hash: bool) -> list[int]:
    """Classes in which an image finds another, as they come or in an order that their names alone decide.

    The latter where CCP goes by them: neighbours in a list are often of a kind (SOP: all bicycles).
    """
    sizes = images.labels.bincount(minlength=images.num_classes)
    order = shuffled("monitored", images.class_names) if by_hash else range(images.num_classes)
    return [c for c in order if sizes[c] > 1]
