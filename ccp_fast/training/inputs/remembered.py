"""Which image files could be decoded before: a file in the user's cache for each data set, Pillow and set of rules.

An image is the one that was tried as long as its size in bytes and the time of its last change are. What is remembered
saves time alone: it may be deleted, and where it cannot be read or written all is as if there were none.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import PIL

from ccp_fast._system.files import write_atomically
from ccp_fast.training.errors import CannotWrite

RULES = 2  # of what counts as decoded: files that another version of them remembered are tried again

State = list[int]  # bytes, time of the last change in ns


def state_of(path: Path) -> State | None:
    """None where there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def whole_files(root: Path) -> dict[str, State]:
    """By their paths below the root."""
    try:
        content = json.loads(_file(root).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    return content if isinstance(content, dict) else {}


def remember(root: Path, whole: Mapping[str, State]) -> None:
    """These, instead of those of before."""
    try:
        file = _file(root)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(whole))
    except (OSError, CannotWrite, RuntimeError):
        pass


def _file(root: Path) -> Path:
    """RuntimeError if nobody knows where the user's home is."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ccp_fast"
    key = hashlib.sha256(
        f"{RULES} {PIL.__version__} {root.resolve()}".encode("utf-8", "surrogateescape")
    ).hexdigest()
    return folder / f"whole-images-{key[:16]}.json"
