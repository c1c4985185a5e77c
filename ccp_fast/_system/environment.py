"""What a run was made with."""

from __future__ import annotations

import resource
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import ccp_fast

PACKAGES = ("torch", "numpy", "safetensors", "scikit-learn", "pillow", "timm")


def describe(threads: int) -> dict[str, object]:
    """Versions, processor, build and commit, as far as they can be found."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git_commit": _commit(),
        "packages": {name: _version(name) for name in PACKAGES},
        **ccp_fast.info(),
        "threads": threads,
    }


def peak_memory_bytes() -> int:
    """The most that this process ever had in memory (resident, libraries included)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout the package lies in, "+changes" where files differ; None outside of one."""
    folder = Path(ccp_fast.__file__).parent
    ask = ["git", "-C", str(folder), "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(ask, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
