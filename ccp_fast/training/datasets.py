"""Data sets by name, divided into splits. Another one is a reader in `ccp_fast.data`, a line here and in `DataName`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import torch

from ccp_fast.data import (
    EvaluationSet,
    ImageFiles,
    ImageSet,
    ImageSource,
    Parts,
    Splits,
    cars,
    cub,
    folders,
    glyphs,
    glyphs_large,
    inshop,
    sop,
)
from ccp_fast.training.errors import UserError
from ccp_fast.training.inputs.broken import without_broken
from ccp_fast.training.order import shuffled
from ccp_fast.training.settings import Config, DataConfig
from ccp_fast.training.workers import worker_count

log = logging.getLogger(__name__)


def load_splits(config: Config) -> Splits:
    """What `data.name` stands for, with classes to validate on. UserError, DataFileError where that is not there."""
    parts = load_parts(config.data)
    train, val = parts.train, parts.val
    if val is None:
        train, val = hold_out(train, config.data.val_share)
    return checked(Splits(train, EvaluationSet(val), parts.test))


def checked(splits: Splits) -> Splits:
    """The same; UserError where no query could find anything."""
    monitored = (
        ("training", EvaluationSet(splits.train)) if splits.val is None else ("validation", splits.val)
    )
    for name, images in (monitored, ("test", splits.test)):
        if not _can_be_found(images):
            raise UserError(
                f"data: expected {name} classes in which a query finds another image, got none: "
                f"all {images.num_classes} have too few"
            )
    return splits


def _can_be_found(images: EvaluationSet) -> bool:
    """Whether any query has an image of its class to find."""
    asked = images.query.labels.bincount(minlength=images.num_classes)
    if images.gallery is None:
        return bool((asked > 1).any())
    return bool(((asked > 0) & (images.gallery.labels.bincount(minlength=images.num_classes) > 0)).any())


def load_parts(config: DataConfig) -> Parts:
    """What `data.name` stands for, all classes that may be learned from together."""
    if config.held_out_typefaces and config.name != "glyphs-large":
        raise UserError(
            f"data.held_out_typefaces: expected 0 with the data set {config.name}, got {config.held_out_typefaces}"
        )
    parts = DATASETS[config.name](config)
    if config.on_broken == "skip":
        return without_broken_parts(parts, worker_count(config.workers), log.warning)
    return parts


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


def _glyphs(_: DataConfig) -> Parts:
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
    query, gallery = (_of_sources(test, held, wanted=wanted) for wanted in (True, False))
    return Parts(_without_empty(_of_sources(train, held, wanted=False)), EvaluationSet(query, gallery))


def _of_sources(images: ImageSet, sources: torch.Tensor, *, wanted: bool) -> ImageSet:
    """The images from some sources, or from all others."""
    return images.of_images((torch.isin(images.source_ids, sources) == wanted).nonzero().squeeze(1))


def _published(reader: Callable[..., Parts]) -> Callable[[DataConfig], Parts]:
    return lambda config: reader(_root(config), any_counts=config.counts == "any")


DATASETS: dict[str, Callable[[DataConfig], Parts]] = {
    "glyphs": _glyphs,
    "glyphs-large": _glyphs_large,
    "sop": _published(sop),
    "cub": _published(cub),
    "cars": _published(cars),
    "inshop": _published(inshop),
    "folders": lambda config: folders(_root(config)),
}


IN_MEMORY = ("glyphs", "glyphs-large")  # as `ImageSet`, whose images are shown whole


def _root(config: DataConfig) -> Path:
    if config.root is None:
        raise UserError(f"data.root: expected the folder of {config.name}: give it with --data-root")
    try:
        str(config.root).encode()
    except UnicodeEncodeError:  # only the root: paths below it are in no file of a run
        raise UserError(
            f"data.root: expected a path in UTF-8, as the settings of a run are kept, got {str(config.root)!r}"
        ) from None
    return config.root


def without_broken_parts(
    parts: Parts, workers: int, say: Callable[[str], None], *, trust: bool = True
) -> Parts:
    """Without image files that cannot be decoded; of each is said why, in one sentence.

    trust: files that were decoded before and have not changed since are not tried again.
    """

    def whole(images: ImageSource) -> ImageSource:
        return without_broken(images, workers, say, trust=trust) if isinstance(images, ImageFiles) else images

    gallery = None if parts.test.gallery is None else whole(parts.test.gallery)
    return Parts(
        _without_empty(whole(parts.train)),
        EvaluationSet(whole(parts.test.query), gallery),
        None if parts.val is None else _without_empty(whole(parts.val)),
    )


def _without_empty(images: ImageSource) -> ImageSource:
    """Without classes that have no image."""
    sizes = images.labels.bincount(minlength=images.num_classes)
    return images if sizes.all() else images.of_classes(sizes.nonzero().squeeze(1).tolist())
