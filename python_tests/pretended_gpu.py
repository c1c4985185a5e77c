"""A GPU that does everything at once, for tests of what is around the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from helpers import one_thread  # noqa: F401

from ccp_fast.bench.case import Outputs, Step
from ccp_fast.bench.gpu.ceilings import Rates
from ccp_fast.bench.gpu.device import Gpu
from ccp_fast.bench.results import Kernel

RATES = Rates(4e12, {"bfloat16": 800e12, "tf32": 400e12, "float32": 50e12})
KERNEL = Kernel("ccp::forward", "kernel", 1, 3.0, [132, 1, 1], [256, 1, 1], 128, 1024, 50.0)


class PretendedGpu(Gpu):
    """A device that does everything at once, at the cost of the time its clock says."""

    def __init__(self, index: int = 0) -> None:
        self.cache_bytes, self.now, self.log = 1000, 0.0, []

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

    def kernels(self, step: Step) -> list[Kernel]:
        step()
        return [KERNEL]

    def release(self) -> None:
        pass
