"""Data sets by name, divided into splits. Another one is a function here and its name in `DataName`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from ccp_fast.data import EvaluationSet, ImageSet, ImageSource, Splits, glyphs
from ccp_fast.data.glyphs_large import glyphs_large
from ccp_fast.training.config import Config, DataConfig
from ccp_fast.training.errors import UserError
from ccp_fast.training.order import shuffled


class Parts(NamedTuple):
    """A data set as its authors divide it."""

    train: ImageSource  # all classes that may be learned from
    test: EvaluationSet
    val: ImageSource | None = None  # None: held out of `train`


def load_splits(config: Config) -> Splits:
    """What `data.name` stands for, with classes to validate on. UserError, DataFileError where that is not there."""
    parts = load_parts(config.data)
    train, val = parts.train, parts.val
    if val is None:
        train, val = hold_out(train, config.data.val_share)
    return Splits(train, EvaluationSet(val), parts.test)


def load_parts(config: DataConfig) -> Parts:
    """What `data.name` stands for."""
    return DATASETS[config.name](config)


def hold_out(images: ImageSource, share: float) -> tuple[ImageSource, ImageSource]:
    """Without a share of the classes, and these alone; which they are depends on the names of the classes alone."""
    count = round(share * images.num_classes)
    if not 0 < count < images.num_classes:
        raise UserError(
            f"data.val_share: expected a share of {images.num_classes} classes between none and all, got {share:g}"
        )
    held = set(shuffled("validation", images.class_names)[:count])
    kept = [i for i in range(images.num_classes) if i not in held]
    return images.of_classes(kept), images.of_classes(sorted(held))


def _glyphs(config: DataConfig) -> Parts:
    _needs_typefaces_of_its_own(config)
    return Parts(glyphs("train"), EvaluationSet(glyphs("test")), glyphs("val"))


def _glyphs_large(config: DataConfig) -> Parts:
    """With held-out typefaces: the queries are in these, and what they are searched in is in the others."""
    train, test = (glyphs_large(_root(config), split) for split in ("train", "test"))
    if not config.held_out_typefaces:
        return Parts(train, EvaluationSet(test))
    if config.held_out_typefaces >= len(train.sources):
        raise UserError(
            f"data.held_out_typefaces: expected fewer than {len(train.sources)}, got {config.held_out_typefaces}"
        )
    held = torch.tensor(shuffled("typefaces", train.sources)[: config.held_out_typefaces])
    seen = _of_sources(train, held, wanted=False)
    present = seen.labels.bincount(minlength=seen.num_classes).nonzero().squeeze(1).tolist()
    query, gallery = (_of_sources(test, held, wanted=wanted) for wanted in (True, False))
    return Parts(seen.of_classes(present), EvaluationSet(query, gallery))


def _of_sources(images: ImageSet, sources: torch.Tensor, *, wanted: bool) -> ImageSet:
    """The images from some sources, or from all others."""
    return images.of_images((torch.isin(images.source_ids, sources) == wanted).nonzero().squeeze(1))


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise UserError(f"data.root: expected the folder of {config.name}: give it with --data-root")
    return config.root


def _needs_typefaces_of_its_own(config: DataConfig) -> None:
    if config.held_out_typefaces:
        raise UserError(f"data.held_out_typefaces: expected 0 with data set {config.name!r}")


DATASETS: dict[str, Callable[[DataConfig], Parts]] = {"glyphs": _glyphs, "glyphs-large": _glyphs_large}
