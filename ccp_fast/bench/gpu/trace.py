"""The launches in a trace of torch.profiler (the JSON of chrome://tracing)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ccp_fast.bench.launch import Kind, Launch

_KINDS: dict[str, Kind] = {"kernel": "kernel", "gpu_memset": "memset", "gpu_memcpy": "memcpy"}


def launches_of(trace: Mapping[str, Any]) -> list[Launch]:
    """All that the device did, in order."""
    events = [event for event in trace["traceEvents"] if event.get("cat") in _KINDS]
    return [_launch(event) for event in sorted(events, key=lambda event: float(event["ts"]))]


def _launch(event: Mapping[str, Any]) -> Launch:
    details = event.get("args", {})
    return Launch(
        name=event["name"],
        kind=_KINDS[event["cat"]],
        grid=tuple(details.get("grid", ())),
        block=tuple(details.get("block", ())),
        registers=details.get("registers per thread"),
        shared_bytes=details.get("shared memory"),
        size=details.get("bytes"),
        microseconds=float(event.get("dur", 0.0)),
    )
