"""What a run was made with."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import ccp_fast

PACKAGES = ("ccp-fast", "torch", "numpy", "safetensors", "scikit-learn", "matplotlib")


def describe(threads: int) -> dict[str, object]:
    """Versions, processor and commit, as far as they can be found."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": threads,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "git_commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name: Linux tells it in /proc/cpuinfo only."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the checkout the package lies in, "+changes" where files differ; None outside of one."""
    folder = Path(ccp_fast.__file__).parent
    try:
        ask = [
            "git",
            "-C",
            str(folder),
            "describe",
            "--always",
            "--dirty=+changes",
            "--abbrev=40",
            "--exclude=*",
        ]
        return subprocess.run(ask, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
