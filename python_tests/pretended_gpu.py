"""A GPU that does everything at once, for tests of what is around the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from helpers import one_thread  # noqa: F401

from ccp_fast.bench.case import Outputs, Step
from ccp_fast.bench.gpu.ceilings import Rates
from ccp_fast.bench.gpu.device import Gpu
from ccp_fast.bench.gpu.kernels import kernels_of
from ccp_fast.bench.gpu.occupancy import Limits
from ccp_fast.bench.launch import KernelWork, Launch
from ccp_fast.bench.results import Kernel

RATES = Rates(4e12, {"bfloat16": 800e12, "tf32": 400e12, "float32": 50e12})
LAUNCH = Launch(
    "void ccp::forward<float>(Job)", "kernel", (132, 1, 1), (256, 1, 1), 128, 1024, microseconds=3.0
)
H100 = Limits(threads=2048, registers=65536, shared_bytes=228 * 1024, blocks=32)


def kernel(microseconds: float = 3.0) -> Kernel:
    """As a row keeps it."""
    launch = LAUNCH._replace(microseconds=microseconds)
    work = KernelWork("128 x 64", 6e8, 6e6, products=True)
    (found,) = kernels_of([launch] * 3, 3, lambda launches: [work], H100, RATES, "bfloat16")
    return found


class PretendedGpu(Gpu):
    """A device that does everything at once, at the cost of the time its clock says."""

    def __init__(self, index: int = 0) -> None:
        self.cache_bytes, self.now, self.log = 1000, 0.0, []
        self.limits, self.multiprocessors = H100, 132

    def flush(self, times: int = 1) -> None:
        self.now += 1e-3 * times
        self.log.append(f"flush {times}")

    def mark(self) -> Any:
        self.now += 1e-9
        return self.now

    def seconds(self, start: Any, end: Any) -> float:
        return end - start

    def wait(self) -> None:
        self.log.append("wait")

    def allocated(self) -> int:
        return 0

    def peak_extra_bytes(self, step: Step, in_place: bool) -> int:
        step()
        return 1000

    def capture(self, step: Step) -> tuple[Callable[[], None], Outputs]:
        outputs: Outputs = ()
        for _ in range(self.warm_ups + 1):
            outputs = step()
        return (lambda: None), outputs

    def launches(self, steps: Sequence[Step], times: int) -> list[Launch]:
        for i in range(times):
            steps[i % len(steps)]()
        return [LAUNCH] * times

    def release(self) -> None:
        pass
