"""Debian's font packages, fetched by apt and unpacked beside each other; nothing is installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ccp_fast._system.files import sync_folder, sync_tree
from ccp_fast.data.packed import DataFileError

VERSION = "VERSION"  # file in an unpacked package


def unpack(package: str, folder: Path, packages: Path | None) -> Path:
    """The content of a package in `folder`/`package`, whole or not at all; what is there already is kept.

    Its .deb file is taken from the folder `packages`, or else fetched by ``apt-get download``, which checks it against
    the signed index. Raises DataFileError if it cannot be had.
    """
    done = folder / package
    if done.is_dir():
        return done
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{package}.") as name:
        draft = Path(name)
        archive = _fetch(package, draft) if packages is None else _given(package, packages)
        # Made by dpkg-deb, which would otherwise give it the permissions of the package's root.
        _run(["dpkg-deb", "--extract", str(archive), str(draft / "content")], package)
        version = _run(["dpkg-deb", "--field", str(archive), "Version"], package).strip()
        (draft / "content" / VERSION).write_text(version, encoding="utf-8")
        sync_tree(draft / "content")
        (draft / "content").rename(done)
        sync_folder(folder)
    return done


def _given(package: str, packages: Path) -> Path:
    found = sorted(packages.glob(f"{package}_*.deb"))
    if len(found) != 1:
        raise DataFileError(f"--packages: expected one file {package}_*.deb in {packages}, got {len(found)}")
    return found[0]


def _fetch(package: str, draft: Path) -> Path:
    _run(["apt-get", "download", "--quiet", package], package, draft)
    return _given(package, draft)


def _run(command: list[str], package: str, folder: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise DataFileError(
            f"{package}: {command[0]} was not found; the set is built on Debian or a relative of it"
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(("E:", "dpkg-deb: error"))]
        raise DataFileError(
            f"{package}: {command[0]} failed: {(said or [f'exit code {done.returncode}'])[-1]}"
        )
    return done.stdout
