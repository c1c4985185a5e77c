"""How a data set is divided: classes to train on, to choose the best step by, and to report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from ccp_fast.data.source import ImageSource


@dataclass(frozen=True)
class EvaluationSet:
    """Queries, and the gallery they are searched in; None: in each other, each leaving out itself.

    Both number their classes alike.
    """

    query: ImageSource
    gallery: ImageSource | None = None

    def __post_init__(self) -> None:
        """ValueError if the two number their classes differently."""
        if self.gallery is not None and self.gallery.class_names != self.query.class_names:
            raise ValueError("gallery: expected the class names of the queries, got others")

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.query.num_classes

    @property
    def searched(self) -> ImageSource:
        """What the queries are searched in."""
        return self.query if self.gallery is None else self.gallery


class Parts(NamedTuple):
    """A data set as its authors divide it."""

    train: ImageSource  # all classes that may be learned from
    test: EvaluationSet
    val: ImageSource | None = None  # None: to be held out of `train`

    def counts(self) -> dict[str, int]:
        """Of classes and images."""
        query, gallery = self.test.query, self.test.gallery
        images = {"test images": len(query)}
        if gallery is not None:
            images = {"query images": len(query), "gallery images": len(gallery)}
        held_out = {}
        if self.val is not None:
            held_out = {"validation classes": self.val.num_classes, "validation images": len(self.val)}
        return {
            "training classes": self.train.num_classes,
            "training images": len(self.train),
            **held_out,
            "test classes": self.test.num_classes,
            **images,
        }


class Splits(NamedTuple):
    """Disjoint in their classes."""

    train: ImageSource
    val: EvaluationSet | None  # None: nothing is held out
    test: EvaluationSet
