"""Any set of images in folders, one a class.

    train/CLASS/*.jpg  test/CLASS/*.jpg

or, without folders of these names, CLASS/*.jpg: then the first half of the classes by name is trained on. Images may
lie deeper within the folder of their class.
"""

from __future__ import annotations

import os
from pathlib import Path

from ccp_fast.data.layout import Layout, Listed
from ccp_fast.data.splits import EvaluationSet, Parts

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SOURCE = "wherever you have it"


def folders(root: Path | str) -> Parts:
    """The two parts. DataFileError for a folder without classes, a class without images, or one in both parts."""
    layout = Layout("folder of class folders", Path(root), SOURCE)
    if not os.path.isdir(layout.root):
        raise layout.error(f"{root} is not a folder")
    if all(os.path.isdir(layout.root / part) for part in ("train", "test")):
        train, test = (_classes(layout, layout.root / part) for part in ("train", "test"))
    else:
        classes = _classes(layout, layout.root)
        half = (len(classes) + 1) // 2
        train, test = (dict(part) for part in (list(classes.items())[:half], list(classes.items())[half:]))
    if not train or not test:
        raise layout.error(f"expected folders of classes to train on and to test in {root}, got too few")
    listed = [[Listed(p, name) for name, paths in part.items() for p in paths] for part in (train, test)]
    return layout.parts(layout.images(listed[0]), EvaluationSet(layout.images(listed[1])))


def _classes(layout: Layout, folder: Path) -> dict[str, list[str]]:
    """Paths of images by class, both in the order of their names."""
    found: dict[str, list[str]] = {}
    for entry in layout.inside(folder):
        if not os.path.isdir(entry) or entry.name.startswith("."):
            continue
        paths = [
            Path(parent, name).relative_to(layout.root).as_posix()
            for parent, _, names in os.walk(entry)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
        if not paths:
            raise layout.error(f"expected images ({', '.join(SUFFIXES)}) in {entry}, got none")
        found[entry.name] = sorted(paths)
    return found
