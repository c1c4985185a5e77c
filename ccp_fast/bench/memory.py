"""Peak memory of one step beyond its inputs and results, measured in a process that does nothing else.

The process runs the step once at toy size (threads, libraries and kernels are then in place), makes the inputs,
gives freed memory back to the system, resets the kernel's high-water mark of resident memory
(`/proc/self/clear_refs`), runs the step once, and reads the mark. Pages of program files do not count, and the
results are subtracted: gradients are what was asked for, whoever computes them. C++ scratch and torch tensors
count alike. The kernel counts pages in batches: figures are good to about half a megabyte. Linux only.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from ccp_fast.bench.case import Case, Outputs, Size

_TIMEOUT = 300.0  # seconds
_GOODBYE = 5.0  # for a process to end by itself
_NO_HUGE_PAGES = 41  # PR_SET_THP_DISABLE: count what is touched, not 2 MB for it


def available() -> bool:
    """Can this system tell?"""
    return sys.platform == "linux" and Path("/proc/self/clear_refs").exists()


def peak_extra_bytes(case: Case, implementation: str, size: Size, threads: int) -> int | None:
    """Of one step of the registered case; None where this system cannot tell."""
    if not available():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ccp_fast.bench.memory_imports"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_child, args=(theirs, case.key, implementation, size, threads), daemon=True
    )
    process.start()
    theirs.close()
    try:
        result = ours.recv() if ours.poll(_TIMEOUT) else f"took longer than {_TIMEOUT:.0f} s"
    except EOFError:
        result = "the process ended early, perhaps out of memory"
    finally:
        process.join(_GOODBYE)
        process.kill()
        process.join()
    if isinstance(result, str):
        raise RuntimeError(f"memory of {implementation} in {' '.join(case.key)}: {result}")
    return int(result)


def _child(
    connection: Connection, key: tuple[str, str, str], implementation: str, size: Size, threads: int
) -> None:
    try:
        from ccp_fast.bench.cases import find

        torch.set_num_threads(threads)
        toy, case = find(key, "toy"), find(key, size)
        toy.implementation(implementation).prepare(toy.inputs())()
        connection.send(measure(case, implementation))
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


def measure(case: Case, implementation: str) -> int:
    """In this process, which ought to be a fresh one."""
    competitor = case.implementation(implementation)
    step = competitor.prepare(case.inputs())
    if competitor.role == "compiled":
        step()  # compiles for these shapes
    with Peak() as peak:
        outputs = step()
    results = 0 if case.in_place else _bytes(outputs)
    return max(0, peak.extra_bytes - results)


class Peak:
    """The most that this process holds during the block beyond what it held before. Linux only."""

    extra_bytes: int

    def __enter__(self) -> Peak:
        """Give freed memory back and begin a new high-water mark."""
        libc = ctypes.CDLL(None)
        libc.prctl(_NO_HUGE_PAGES, 1, 0, 0, 0)
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status()
        return self

    def __exit__(self, *_: object) -> None:
        """Read the mark; program files do not count."""
        after = _status()
        files = max(0, after["RssFile"] - self._before["RssFile"])
        self.extra_bytes = max(0, after["VmHWM"] - self._before["VmRSS"] - files)


def _bytes(outputs: Outputs | Sequence[torch.Tensor]) -> int:
    return sum(output.nbytes for output in outputs)


def _status() -> dict[str, int]:
    """Bytes by name, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split(":", 1) for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, value in pairs if value.endswith(" kB")}
