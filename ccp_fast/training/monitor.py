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
        seen: `evaluation.train_classes` of those trained on.
    """

    def __init__(self, config: Config, splits: Splits) -> None:
        self.held_out = splits.val
        most = config.evaluation.train_classes
        self.seen = EvaluationSet(
            splits.train.of_classes(range(min(most, splits.train.num_classes)))
            if self.held_out is not None
            else _sample(splits.train, most)
        )

    def measure(
        self, retrieval: Callable[[EvaluationSet, tuple[str, ...]], Mapping[str, float]]
    ) -> dict[str, Any]:
        """The columns of a row; those of classes held out are None where there are none."""
        held_out: Mapping[str, float | None] = dict.fromkeys(MONITORED)
        if self.held_out is not None:
            held_out = retrieval(self.held_out, MONITORED)
        return {
            "train_map_at_r": retrieval(self.seen, ("map_at_r",))["map_at_r"],
            **{f"val_{name}": held_out[name] for name in MONITORED},
        }


def monitored(row: Row) -> float:
    """The number that CCP and the choice of a step go by: of the classes held out, or else of those trained on."""
    value: float = row["train_map_at_r"] if row["val_map_at_r"] is None else row["val_map_at_r"]
    return value


def _sample(images: ImageSource, most: int) -> ImageSource:
    """Classes of several images, drawn by their names: neighbours in a list are often of a kind (SOP: all bicycles)."""
    sizes = images.labels.bincount(minlength=images.num_classes)
    drawn = [c for c in shuffled("monitored", images.class_names) if sizes[c] > 1]
    return images.of_classes(sorted(drawn[:most]))
