"""The kernels in a trace of torch.profiler (the JSON of chrome://tracing)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from ccp_fast.bench.results import Kernel

_KINDS: dict[str, Literal["kernel", "memset", "memcpy"]] = {
    "kernel": "kernel",
    "gpu_memset": "memset",
    "gpu_memcpy": "memcpy",
}


def kernels_of(trace: Mapping[str, Any]) -> list[Kernel]:
    """In the order in which each first ran; the same kernel with the same launch is counted."""
    events = [event for event in trace["traceEvents"] if event.get("cat") in _KINDS]
    found: dict[tuple[Any, ...], Kernel] = {}
    for event in sorted(events, key=lambda event: float(event["ts"])):
        kernel = _kernel(event)
        key = (kernel.kind, kernel.name, *kernel.grid, *kernel.block, kernel.shared_bytes)
        if key in found:
            before = found[key]
            kernel = replace(
                before, count=before.count + 1, microseconds=before.microseconds + kernel.microseconds
            )
        found[key] = kernel
    return list(found.values())


def _kernel(event: Mapping[str, Any]) -> Kernel:
    details = event.get("args", {})
    return Kernel(
        name=event["name"],
        kind=_KINDS[event["cat"]],
        count=1,
        microseconds=float(event.get("dur", 0.0)),
        grid=list(details.get("grid", [])),
        block=list(details.get("block", [])),
        registers=details.get("registers per thread"),
        shared_bytes=details.get("shared memory"),
        occupancy=details.get("est. achieved occupancy %"),
    )
