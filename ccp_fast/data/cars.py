"""Cars196 (Krause et al., 2013): 196 models of cars, 16,185 photographs; the first 98 are trained on.

It has been given away in two forms. Either

    cars_annos.mat                       relative_im_path, class, and the names of the classes
    car_ims/000001.jpg ...

or, each file in the root or in the folder `devkit`,

    cars_meta.mat                        the names of the classes
    cars_train_annos.mat                 fname, class
    cars_test_annos_withlabels.mat       the same; cars_test_annos.mat of the devkit lacks the classes
    cars_train/00001.jpg ...  cars_test/00001.jpg ...

MATLAB files are read by SciPy, which comes with the extra [train].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ccp_fast.data.layout import Layout, Listed
from ccp_fast.data.splits import EvaluationSet, Parts

# Its authors' page is gone.
SOURCE = "those who have copies; some are listed in https://github.com/pytorch/vision/issues/7545"
PUBLISHED = {
    "training classes": 98,
    "training images": 8_054,
    "test classes": 98,
    "test images": 8_131,
}


def cars(root: Path | str, *, any_counts: bool = False) -> Parts:
    """The customary division. DataFileError where a folder has neither form of the set, or not all of it."""
    layout = Layout("Cars196", Path(root), SOURCE)
    names, listed = _one_list(layout) if _is_one_list(layout) else _devkit(layout)
    half = len(names) // 2
    train: list[Listed] = []
    test: list[Listed] = []
    for path, number in listed:
        if not 1 <= number <= len(names):
            raise layout.error(f"expected classes 1 to {len(names)}, got {number} for {path}")
        (train if number <= half else test).append(Listed(path, names[number - 1]))
    found = EvaluationSet(layout.images(test))
    return layout.parts(layout.images(train), found, None if any_counts else PUBLISHED)


def _is_one_list(layout: Layout) -> bool:
    """The list alone often lies beside the other form."""
    if not layout.has("cars_annos.mat"):
        return False
    return layout.has("car_ims") or not any(layout.has(name) for name in ("devkit", "cars_meta.mat"))


def _one_list(layout: Layout) -> tuple[list[str], list[tuple[str, int]]]:
    path = layout.root / "cars_annos.mat"
    content = _read(layout, path, "annotations", "class_names")
    fields = _fields(layout, path, content["annotations"], "relative_im_path", "class")
    return _names(content["class_names"]), [(str(image), int(number)) for image, number in fields]


def _devkit(layout: Layout) -> tuple[list[str], list[tuple[str, int]]]:
    meta, *lists = (
        layout.find(name, f"devkit/{name}")
        for name in ("cars_meta.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat")
    )
    names = _names(_read(layout, meta, "class_names")["class_names"])
    listed = []
    for folder, path in zip(("cars_train", "cars_test"), lists, strict=True):
        fields = _fields(layout, path, _read(layout, path, "annotations")["annotations"], "fname", "class")
        listed += [(f"{folder}/{image}", int(number)) for image, number in fields]
    return names, listed


def _read(layout: Layout, path: Path, *wanted: str) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content: dict[str, Any] = loadmat(path, squeeze_me=True, variable_names=wanted)
    except Exception as error:  # what SciPy raises for a damaged file depends on where the damage is
        raise layout.cannot_read(path, error) from None
    for name in wanted:
        if name not in content:
            raise layout.error(f"{path}: expected the variable {name!r}, got none of that name")
    return content


def _fields(layout: Layout, path: Path, table: Any, *names: str) -> list[tuple[Any, ...]]:
    table = np.atleast_1d(table)
    for name in names:
        if name not in (table.dtype.names or ()):
            raise layout.error(f"{path}: expected annotations with the field {name!r}, got none of that name")
    return list(zip(*(table[name].tolist() for name in names), strict=True))


def _names(table: Any) -> list[str]:
    """Numbered, because some sets of names have one twice."""
    return [f"{i:03d} {name}" for i, name in enumerate(np.atleast_1d(table).tolist(), 1)]
