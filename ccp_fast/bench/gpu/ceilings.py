"""What this GPU can do at best, measured in the same run as everything that is compared with it.

bytes   a copy of an array far larger than the L2 cache, read and written bytes counted
FLOPs   torch.mm of square matrices of random numbers (zeros run faster): bfloat16, tf32, and float32 without tf32.
        Matrix units can also do float32 products to full precision as three tf32 products, so the rate for those is
        a third of tf32's where that is more

Each is the best of many tries.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch

from ccp_fast.bench.case import Case, Place, Precision, Step
from ccp_fast.bench.gpu.timing import Device

_TRIES = 15
_MATRIX: dict[Precision, int] = {"bfloat16": 8192, "tf32": 8192, "float32": 4096}  # rows and columns


@dataclass(frozen=True)
class Rates:
    """Bytes per second, and FLOPs per second of torch.mm."""

    bytes_per_second: float
    mm_flops_per_second: dict[str, float]  # by precision

    def flops_per_second(self, case: Case) -> float:
        """For the arithmetic of a case; what is no matrix product runs outside of the matrix units, in float32."""
        return self.of(case.precision, case.products)

    def of(self, precision: Precision, products: bool) -> float:
        """FLOPs per second of such arithmetic."""
        mm = self.mm_flops_per_second
        if not products:
            return mm["float32"]
        return max(mm["float32"], mm["tf32"] / 3) if precision == "float32" else mm[precision]


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Lets products of float32 round their factors to tf32, or not.

    By the older of torch's two settings: compilers still read it, and they cannot where only the newer one was set.
    """
    settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    newer, older = [setting.fp32_precision for setting in settings], _older_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)  # sets the newer ones, too
        for setting, value in zip(settings, newer, strict=True):
            setting.fp32_precision = value


def _older_precision() -> str:
    """What it is at first where the newer ones contradict it, which makes reading it an error."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "highest"


def measure(device: Device, where: str = "cuda", *, megabytes: int = 1024, shrink: int = 1) -> Rates:
    """Both ceilings; `shrink` divides the matrices."""
    products = {
        str(precision): _mm(precision, side // shrink, device, where) for precision, side in _MATRIX.items()
    }
    return Rates(_copy(megabytes * 1_000_000, device, where), products)


def _copy(size: int, device: Device, where: str) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    return 2.0 * size / _best(lambda: (target.copy_(source),), device)


def _mm(precision: Precision, side: int, device: Device, where: str) -> float:
    a, b = (torch.randn(side, side, device=where).to(Place(where, precision).dtype) for _ in range(2))
    out = torch.empty_like(a)
    with matmul_precision(precision):
        return 2.0 * side**3 / _best(lambda: (torch.mm(a, b, out=out),), device)


def _best(step: Step, device: Device) -> float:
    """Seconds."""
    for _ in range(3):
        step()
    marks = [device.mark()]
    for _ in range(_TRIES):
        step()
        marks.append(device.mark())
    device.wait()
    return max(min(device.seconds(a, b) for a, b in pairwise(marks)), 1e-9)
