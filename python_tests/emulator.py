"""Builds and loads the emulator, which runs the CUDA kernels' own source on the CPU (csrc/host_emu/)."""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch

CSRC = Path(__file__).resolve().parent.parent / "csrc"
BUILDS = CSRC.parent / "build" / "host_emu"


@functools.cache
def load(*, sanitize: bool = False) -> ModuleType:
    """The module, built if its sources have changed since the last time."""
    folder = BUILDS / ("sanitized" if sanitize else "plain")
    stamp = folder / "sources.sha256"
    wanted = _digest()
    if not stamp.is_file() or stamp.read_text() != wanted:
        _build(folder, sanitize)
        stamp.write_text(wanted)
    (path,) = folder.glob("_emulator*.so")
    spec = importlib.util.spec_from_file_location("_emulator", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def sums_cut_off() -> Iterator[None]:
    """Tensor cores add as those of an A100 do, instead of rounding to nearest."""
    load().cut_off_sums(True)
    try:
        yield
    finally:
        load().cut_off_sums(False)


@contextlib.contextmanager
def only_end_blocks(first: int, last: int) -> Iterator[None]:
    """So many first and last blocks of every grid run, and no others."""
    load().only_end_blocks(first, last)
    try:
        yield
    finally:
        load().only_end_blocks(0, 0)


def unneeded_barriers(differs: Callable[[int], bool], seeds: int = 6) -> list[str]:
    """The barriers, and other waits, that may be left out without anyone noticing.

    `differs(seed)` runs kernels with the threads in this order and tells whether the results are not the right
    ones. Each barrier is tried in a process of its own: a crash has been noticed, too.
    """
    module = load()
    module.forget_barriers()
    assert not differs(0)
    return [site for site in module.barriers_seen() if not _is_noticed(module, site, differs, seeds)]


def _is_noticed(module: ModuleType, site: str, differs: Callable[[int], bool], seeds: int) -> bool:
    child = os.fork()
    if child == 0:
        noticed = True
        try:
            faulthandler.disable()  # nobody wants to read of the crash
            torch.set_num_threads(
                1
            )  # OpenMP's others are the parent's: a child that waits for them waits forever
            module.leave_out(site)
            noticed = any(differs(seed) for seed in range(seeds))
        finally:
            os._exit(int(noticed))
    return os.waitpid(child, 0)[1] != 0


def _build(folder: Path, sanitize: bool) -> None:
    configure = ["cmake", "-G", "Ninja", "-S", str(CSRC / "host_emu"), "-B", str(folder)]
    configure += [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DCCP_EMU_SANITIZE={'ON' if sanitize else 'OFF'}",
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in (configure, ["cmake", "--build", str(folder)]):
        done = subprocess.run(
            command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(
                f"the emulator does not build: {' '.join(command)}\n{done.stdout}\n{done.stderr}"
            )


def _digest() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(CSRC.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(CSRC)).encode() + path.read_bytes())
    return digest.hexdigest()
