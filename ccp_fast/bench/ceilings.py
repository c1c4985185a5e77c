"""What this machine can do at best, measured in the same run as everything that is compared with it.

bytes   a copy of arrays far larger than the caches, read and written bytes counted: the better of
        `Tensor.copy_` and the C library's memcpy, one piece per thread. memcpy writes past the caches, so that
        no line is read just to be overwritten
FLOPs   `ceilings.c`: chains of fused multiply-adds in registers, compiled for this processor, one copy per
        thread. Without a C compiler: torch's float32 matrix product, which is a lower bound

Both are the best of many tries: a ceiling is what could be reached, not what a busy machine allowed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("ceilings.c")
_SECONDS = 0.5  # of tries for each rate


@dataclass(frozen=True)
class Ceilings:
    """Rates of the whole machine with the given number of threads."""

    bytes_per_second: float
    flops_per_second: float
    bytes_how: str
    flops_how: str


def measure(threads: int, *, megabytes: int = 100) -> Ceilings:
    """Measure both ceilings; about two seconds. `megabytes`: the size of one copied array."""
    rates = {name: _best_rate(copy) for name, copy in copies(megabytes * 250_000, threads).items()}
    name = max(rates, key=lambda name: rates[name])
    flops, how = _multiply_adds(threads)
    return Ceilings(
        rates[name], flops, f"{name} of {megabytes} MB, {threads} threads", f"{how}, {threads} threads"
    )


def copies(numbers: int, threads: int) -> dict[str, Callable[[], float]]:
    """Ways to copy an array of that many float32; each returns the bytes it read and wrote."""
    source, target = torch.ones(numbers), torch.zeros(numbers)
    piece = source.nbytes // threads
    last = source.nbytes - piece * (threads - 1)

    def torch_copy() -> float:
        target.copy_(source)
        return 2.0 * source.nbytes

    def copy_piece(i: int) -> None:
        size = piece if i < threads - 1 else last
        ctypes.memmove(target.data_ptr() + i * piece, source.data_ptr() + i * piece, size)

    at_once = _in_threads(threads)

    def memcpy() -> float:
        at_once(copy_piece)
        return 2.0 * source.nbytes

    return {"Tensor.copy_": torch_copy, "memcpy": memcpy}


def _in_threads(threads: int) -> Callable[[Callable[[int], None]], None]:
    """Runs body(0), body(1), ... at the same time: ctypes releases the interpreter's lock during a call."""
    pool = ThreadPoolExecutor(max(1, threads - 1))

    def run(body: Callable[[int], None]) -> None:
        others = [pool.submit(body, i) for i in range(1, threads)]
        body(0)
        for other in others:
            other.result()

    return run


def _best_rate(work: Callable[[], float]) -> float:
    """The best of many tries; `work` returns the units it did."""
    best, begin = 0.0, time.perf_counter()
    while time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        units = work()
        best = max(best, units / (time.perf_counter() - start))
    return best


def _multiply_adds(threads: int) -> tuple[float, str]:
    function = _compiled()
    if function is None:
        return _best_rate(
            _matrix_product()
        ), "no C compiler found: float32 matrix product of torch, a lower bound"
    sinks = [ctypes.c_float() for _ in range(threads)]
    steps = 1_000_000
    at_once = _in_threads(threads)

    def body(i: int) -> None:
        function(steps, ctypes.byref(sinks[i]))

    def work() -> float:
        at_once(body)
        return threads * operations

    operations = function(steps, ctypes.byref(sinks[0]))
    return _best_rate(work), "fused multiply-adds in registers"


def _compiled() -> Callable[..., float] | None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "ceilings.so"
        options = ["-O3", "-march=native", "-ffp-contract=fast", "-shared", "-fPIC"]
        try:
            command = [*compiler.split(), *options, "-o", str(library), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            function = ctypes.CDLL(str(library)).multiply_add
        except (OSError, subprocess.SubprocessError):
            return None
    function.argtypes = [ctypes.c_int64, ctypes.POINTER(ctypes.c_float)]
    function.restype = ctypes.c_double
    return function  # type: ignore[no-any-return]


def _matrix_product() -> Callable[[], float]:
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)

    def product() -> float:
        torch.mm(a, b)
        return 2.0 * 1024**3

    return product
