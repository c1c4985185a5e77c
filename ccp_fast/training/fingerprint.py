"""Whether the data are still those that a run began with."""

from __future__ import annotations

import hashlib
from typing import Any

from ccp_fast.data import ImageFiles, ImageSet, ImageSource, Splits
from ccp_fast.training.errors import UserError


def fingerprint(splits: Splits) -> dict[str, Any]:
    """Of each split its classes and images, and a SHA-256 over labels, classes and images of all, in their order.

    Image files take part with their paths below the root alone: to read them all would take longer than many a run.
    """
    sources = {"train": splits.train}
    for name, images in (("val", splits.val), ("test", splits.test)):
        if images is not None:
            sources[name] = images.query
            if images.gallery is not None:
                sources[f"{name} gallery"] = images.gallery
    return {
        "sha256": hashlib.sha256(
            "".join(_digest(source) for source in sources.values()).encode()
        ).hexdigest(),
        "splits": {
            name: {"classes": source.num_classes, "images": len(source)} for name, source in sources.items()
        },
    }


def check_same_data(began_with: dict[str, Any], now: dict[str, Any], where: str) -> None:
    """UserError, about the run at `where`, if fingerprints differ."""
    if began_with["sha256"] == now["sha256"]:
        return
    before, after = (_counts(one) for one in (began_with, now))
    found = f"{after} now" if after != before else "as many now, but others or with other labels"
    raise UserError(
        f"{where} began with other data ({before} then, {found}): give their folder with --data-root"
    )


def _digest(source: ImageSource) -> str:
    digest = hashlib.sha256(source.labels.numpy().data)
    if isinstance(source, ImageSet):
        names = [*source.class_names, *source.sources]
        digest.update(source.source_ids.numpy().data)
        digest.update(source.images.contiguous().numpy().data)
    elif isinstance(source, ImageFiles):
        names = [*source.class_names, *source.paths]
    else:
        raise TypeError(f"images: expected an ImageSet or ImageFiles, got {type(source).__name__}")
    digest.update("\0".join(names).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _counts(one: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {split['images']:,} images of {split['classes']:,} classes"
        for name, split in one["splits"].items()
    )
