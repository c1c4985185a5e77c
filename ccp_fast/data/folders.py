"""Any set of images in folders, one a class.

    train/CLASS/*.jpg  test/CLASS/*.jpg  and, where some classes are to be validated on, val/CLASS/*.jpg

or, without folders of these names, CLASS/*.jpg: then the first half of the classes by name is trained on. Images may
lie deeper within the folder of their class, also where a symbolic link leads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ccp_fast.data.image_files import ImageFiles
from ccp_fast.data.layout import Layout, Listed
from ccp_fast.data.splits import EvaluationSet, Parts

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SOURCE = "wherever you have it"
PARTS = ("train", "val", "test")


def folders(root: Path | str) -> Parts:
    """The parts. DataFileError for a folder without classes, a class without images, or one in two parts."""
    layout = Layout("folder of class folders", Path(root), SOURCE)
    if not os.path.isdir(layout.root):
        raise layout.error(f"{root} is not a folder")
    there = [part for part in PARTS if os.path.isdir(layout.root / part)]
    if {"train", "test"} <= set(there):
        train, val, test = (_classes(layout, layout.root / part) if part in there else None for part in PARTS)
    elif len(there) > 1:
        raise layout.error(
            f"expected train and test in {root}, and val beside them or not, got {' and '.join(there)}"
        )
    else:
        classes = list(_classes(layout, layout.root).items())
        half = (len(classes) + 1) // 2
        train, val, test = dict(classes[:half]), None, dict(classes[half:])
    if not train or not test:
        raise layout.error(f"expected folders of classes to train on and to test in {root}, got too few")
    if val is not None and not val:
        raise layout.error(f"expected folders of classes in {layout.root / 'val'}, got none")
    return layout.parts(
        _images(layout, train),
        EvaluationSet(_images(layout, test)),
        val=None if val is None else _images(layout, val),
    )


def image_files(folder: Path) -> Iterator[Path]:
    """Files in a folder and deeper whose names are those of images; hidden ones are not.

    Where symbolic links lead is looked at last, and no folder twice, nor the whole that the first lies in: so links
    neither go in circles nor bring in another class. OSError for a folder that cannot be looked into.
    """
    seen = {os.fspath(above) for above in Path(os.path.realpath(folder)).parents}
    waiting = deque([folder])
    while waiting:
        for parent, inside, names in os.walk(waiting.popleft(), onerror=_raise):
            place = os.path.realpath(parent)
            if place in seen:
                inside.clear()
                continue
            seen.add(place)
            waiting += [
                Path(parent, name) for name in sorted(inside) if os.path.islink(os.path.join(parent, name))
            ]
            yield from (
                Path(parent, name)
                for name in names
                if name.lower().endswith(SUFFIXES) and not name.startswith(".")
            )


def _raise(error: OSError) -> None:
    raise error


def _classes(layout: Layout, folder: Path) -> dict[str, list[str]]:
    """Paths of images by class, both in the order of their names."""
    found: dict[str, list[str]] = {}
    for entry in layout.inside(folder):
        if not os.path.isdir(entry) or entry.name.startswith("."):
            continue
        try:
            paths = sorted(path.relative_to(layout.root).as_posix() for path in image_files(entry))
        except OSError as error:
            raise layout.cannot_read(error.filename or entry, error) from None
        if not paths:
            raise layout.error(f"expected images ({', '.join(SUFFIXES)}) in {entry}, got none")
        found[entry.name] = paths
    return found


def _images(layout: Layout, classes: dict[str, list[str]]) -> ImageFiles:
    return layout.images([Listed(path, name) for name, paths in classes.items() for path in paths])
