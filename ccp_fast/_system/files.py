"""Writing files so that a reader, or the next start after a crash, never sees half of one."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from ccp_fast._system.errors import CannotWrite


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write to a temporary file beside it, flush to the disk, rename; CannotWrite leaves the old content or the new."""
    raw = data.encode() if isinstance(data, str) else data
    descriptor, temporary = _temporary_beside(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CannotWrite(path, error) from None
        raise


def check_writable(path: Path) -> None:
    """CannotWrite where `write_atomically` could not write now: to be told before the work for it is done."""
    if os.path.isdir(path):
        raise CannotWrite(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    descriptor, temporary = _temporary_beside(path)
    os.close(descriptor)
    os.unlink(temporary)


def _temporary_beside(path: Path) -> tuple[int, str]:
    """Made and open: its descriptor and its path."""
    try:
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    except OSError as error:
        raise CannotWrite(path, error) from None


def append(path: Path, text: str) -> None:
    """Write at the end of a file; after CannotWrite there may be a part of it."""
    try:
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(text)
    except OSError as error:
        raise CannotWrite(path, error) from None


def remove_unfinished(folder: Path) -> None:
    """Delete what `write_atomically` had begun in a process that was killed."""
    for file in folder.glob(".*.tmp"):
        if file.is_file():
            file.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush names: a rename is on the disk only after this."""
    _sync(folder)


def sync_tree(folder: Path) -> None:
    """Flush all that is in a folder, as others have written it: to be done before the folder gets its final name."""
    for parent, _, names in os.walk(folder):
        for path in (*(Path(parent, name) for name in names), Path(parent)):
            if not path.is_symlink():  # what it points to is not of this folder, or not there
                _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
