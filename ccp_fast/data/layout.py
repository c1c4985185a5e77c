"""What the readers of data sets as distributed share: looking for their files, reading their lists, counting."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch

from ccp_fast.data.image_files import ImageFiles
from ccp_fast.data.packed import DataFileError
from ccp_fast.data.splits import EvaluationSet, Parts


class Listed(NamedTuple):
    """An image and its class, by a name that no other class has."""

    path: str  # below the root
    class_name: str


@dataclass(frozen=True)
class Layout:
    """A data set on the disk, as its authors give it away."""

    title: str
    root: Path
    source: str  # where to get it

    def find(self, *candidates: str) -> Path:
        """The first of the files or folders that exists; DataFileError, with the first one's name, if none does."""
        for candidate in candidates:
            if self.has(candidate):
                return self.root / candidate
        missing = f"{self.root / candidates[0]} is missing"
        for folder in self.inside(self.root) if os.path.isdir(self.root) else ():
            if any(os.path.exists(folder / candidate) for candidate in candidates):
                raise self.error(f"{missing}; did you mean the folder {folder}?")
        raise self.error(f"{missing}; the set is to be had from {self.source}")

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder; where nobody may look there is none.

        So does `os.path` answer, here and below, where `pathlib` raises: many a disk has a `lost+found`.
        """
        return os.path.exists(self.root / name)

    def inside(self, folder: Path) -> list[Path]:
        """What is in a folder, by name. DataFileError where nobody may look."""
        try:
            return sorted(folder.iterdir())
        except OSError as error:
            raise self.cannot_read(folder, error) from None

    def cannot_read(self, path: Path | str, error: Exception) -> DataFileError:
        """A sentence about a file or folder that is there."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        return self.error(f"{path} cannot be read: {reason}")

    def error(self, what: str) -> DataFileError:
        """A sentence that begins with the name of the set."""
        return DataFileError(f"{self.title}: {what}")

    def rows(self, path: Path, columns: int, skip: int = 0) -> Iterator[list[str]]:
        """The lines of a list in columns parted by white space, without the first lines; the last takes the rest.

        White space at the end is of none: lines of In-shop are filled up with it.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise self.cannot_read(path, error) from None
        for number, line in enumerate(lines[skip:], skip + 1):
            if line.strip():
                row = line.strip().split(maxsplit=columns - 1)
                if len(row) != columns:
                    raise self.error(f"{path}, line {number}: expected {columns} columns, got {line[:80]!r}")
                yield row

    def images(self, listed: Sequence[Listed], class_names: Iterable[str] | None = None) -> ImageFiles:
        """A source of them, after a look whether all files are there; classes in the order they are first met.

        Raises DataFileError for a path that leads out of the root, and for files that are missing.
        """
        names = tuple(
            dict.fromkeys(entry.class_name for entry in listed) if class_names is None else class_names
        )
        number = {name: i for i, name in enumerate(names)}
        for path, _ in listed:
            parts = PurePosixPath(path).parts
            if not parts or ".." in parts or parts[0] == "/" or "\0" in path:
                raise self.error(f"expected paths below {self.root} in its lists, got {path!r}")
        missing = [path for path, _ in listed if not os.path.isfile(self.root / path)]
        if missing:
            raise self.error(
                f"{self.root / missing[0]} is missing ({len(missing):,} of {len(listed):,} images are); "
                f"the set is to be had from {self.source}"
            )
        labels = torch.tensor([number[entry.class_name] for entry in listed], dtype=torch.int64)
        return ImageFiles(self.root, tuple(entry.path for entry in listed), labels, names)

    def parts(
        self,
        train: ImageFiles,
        test: EvaluationSet,
        published: Mapping[str, int] | None = None,
        *,
        val: ImageFiles | None = None,
    ) -> Parts:
        """All together. DataFileError where two share a class, or the counts are not the published ones."""
        names = {"train on": train.class_names, "test": test.query.class_names}
        if val is not None:
            names["validate on"] = val.class_names
        for (one, here), (other, there) in combinations(names.items(), 2):
            if both := set(here) & set(there):
                raise self.error(
                    f"expected other classes to {other} than to {one}, got {min(both)!r} in both"
                )
        parts = Parts(train, test, val)
        found = parts.counts()
        for what, count in (published or {}).items():
            if found[what] != count:
                raise self.error(
                    f"expected {count:,} {what}, got {found[what]:,} in {self.root}; data.counts=any accepts that"
                )
        return parts
