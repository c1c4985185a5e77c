"""Golden vectors: inputs and outputs of the published implementations, in one compressed file.

`golden.tar.xz` holds one `.npz` per case, named `source/case` (made by `pack_golden.py`). Each has plain
arrays and `meta`, a JSON text: the source's commit, class, flags, formula, layout, remarks. No pickles.

    from golden import load, names

    @pytest.mark.parametrize("name", names("ccp-dml/kcenter_*"))
    def test(name):
        case = load(name)
        case.flags["K"], case["point_set"]

`coverage.py` says for every case which test uses it or why none does.
"""

from __future__ import annotations

import functools
import io
import json
import tarfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FILE = Path(__file__).with_name("golden.tar.xz")


@dataclass(frozen=True)
class Case:
    """One case; `case["loss"]` is an array."""

    name: str
    meta: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]

    @property
    def flags(self) -> dict[str, Any]:
        flags: dict[str, Any] = self.meta["flags"]
        return flags

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> npt.NDArray[Any]:
        return self.arrays[key]

    def best(self, key: str) -> npt.NDArray[Any]:
        """The array, or its twin from the float64 run of a source that is float32 only."""
        return self.arrays.get(f"{key}_f64", self.arrays[key])


@functools.lru_cache(maxsize=1)
def _files() -> dict[str, bytes]:
    """Every case's `.npz`, decompressed at once: that takes 0.2 s."""
    with tarfile.open(FILE, "r:xz") as archive:
        return {
            member.name.removesuffix(".npz"): stream.read()
            for member in archive
            if (stream := archive.extractfile(member)) is not None
        }


def names(*patterns: str) -> list[str]:
    """Names of the cases that match one of the patterns, in order; all of them without a pattern."""
    return sorted(n for n in _files() if not patterns or any(fnmatchcase(n, p) for p in patterns))


def load(name: str) -> Case:
    with np.load(io.BytesIO(_files()[name]), allow_pickle=False) as stored:
        arrays = {key: stored[key] for key in stored.files}
    return Case(name, json.loads(str(arrays.pop("meta")[()])), arrays)
