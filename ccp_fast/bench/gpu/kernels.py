"""The kernels of a pass, each by itself: time, launch, occupancy, work and floor.

Times are those of the device alone, as CUPTI records them, from many passes that each begin with a cold L2 cache and
take the inputs in turn. A kernel that follows another in its pass may find in the cache what that one has left, as it
does in use.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from ccp_fast.bench.case import Precision, Work
from ccp_fast.bench.gpu.ceilings import Rates
from ccp_fast.bench.gpu.occupancy import Limits
from ccp_fast.bench.launch import KernelWork, Launch
from ccp_fast.bench.results import Kernel

# The work of each of a pass's launches.
WorkOf = Callable[[Sequence[Launch]], Sequence[KernelWork | None]]


def kernels_of(
    launches: Sequence[Launch],
    passes: int,
    work_of: WorkOf | None,
    limits: Limits,
    rates: Rates,
    precision: Precision,
) -> list[Kernel]:
    """In the order in which each first ran; the same kernel with the same launch is one of them, and counted."""
    times: dict[Launch, list[float]] = defaultdict(list)
    for launch in launches:
        times[launch.key].append(launch.microseconds)
    work = work_of(list(times)) if work_of else [None] * len(times)
    return [
        _kernel(launch, times[launch], passes, one, limits, rates, precision)
        for launch, one in zip(times, work, strict=True)
    ]


def _kernel(
    launch: Launch,
    times: Sequence[float],
    passes: int,
    work: KernelWork | None,
    limits: Limits,
    rates: Rates,
    precision: Precision,
) -> Kernel:
    p20, p50, p80 = (float(p) for p in np.percentile(times, (20, 50, 80)))
    floor, floor_from = (
        Work(work.flops, work.bytes).floor(rates.of(precision, work.products), rates.bytes_per_second)
        if work
        else (None, None)
    )
    return Kernel(
        name=launch.name,
        kind=launch.kind,
        count=max(1, round(len(times) / passes)),  # a record may be lost
        p20_us=p20,
        p50_us=p50,
        p80_us=p80,
        samples=len(times),
        grid=list(launch.grid),
        block=list(launch.block),
        registers=launch.registers,
        shared_bytes=launch.shared_bytes,
        resident_blocks=limits.resident(launch),
        occupancy=limits.occupancy(launch),
        tile=work.tile if work else None,
        flops=work.flops if work else None,
        bytes=work.bytes if work else None,
        floor_us=None if floor is None else floor * 1e6,
        floor_from=floor_from,
        gigabytes_per_second=work.bytes / p50 * 1e-3 if work and p50 else None,
        teraflops_per_second=work.flops / p50 * 1e-6 if work and p50 else None,
    )
