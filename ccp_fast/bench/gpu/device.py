"""All that the benchmarks ask of torch.cuda. Tests put something else in its place."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ccp_fast.bench.case import Outputs, Step
from ccp_fast.bench.gpu.occupancy import Limits
from ccp_fast.bench.gpu.trace import launches_of
from ccp_fast.bench.launch import Launch

_CACHES = 4  # how much larger than the L2 cache the buffer is that flushes it
_UNKNOWN_CACHE = 64 << 20
_WARM_UPS = 3  # before a capture, on the stream of the capture


class Gpu:
    """One CUDA device, made the current one."""

    def __init__(self, index: int = 0) -> None:
        torch.cuda.set_device(index)
        self.device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(index)
        self.cache_bytes = int(getattr(properties, "L2_cache_size", 0)) or _UNKNOWN_CACHE
        self.limits = Limits.of_device(properties)
        self.multiprocessors = int(properties.multi_processor_count)
        self._flushes: set[Launch] | None = None
        self._buffer = torch.empty(_CACHES * self.cache_bytes, dtype=torch.uint8, device=self.device)

    def flush(self, times: int = 1) -> None:
        """Overwrite the L2 cache with something else."""
        for _ in range(times):
            self._buffer.zero_()

    def mark(self) -> torch.cuda.Event:
        """An event on the current stream, here and now."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Between two events that have happened."""
        return float(start.elapsed_time(end)) * 1e-3

    def wait(self) -> None:
        """Until the device has nothing left to do. Raises what went wrong meanwhile."""
        torch.cuda.synchronize(self.device)

    def allocated(self) -> int:
        """Bytes of all tensors."""
        return torch.cuda.memory_allocated(self.device)

    def peak_extra_bytes(self, step: Step, in_place: bool) -> int:
        """Peak of one step beyond what was there before and its results."""
        self.wait()
        before = self.allocated()
        torch.cuda.reset_peak_memory_stats(self.device)
        outputs = step()
        self.wait()
        peak = torch.cuda.max_memory_allocated(self.device)
        results = 0 if in_place else sum(output.nbytes for output in outputs if output.is_cuda)
        return max(0, peak - before - results)

    def capture(self, step: Step) -> tuple[Callable[[], None], Outputs]:
        """A CUDA graph of the step: what replays it, and the results it writes to. Raises RuntimeError.

        The step runs three times before it is captured, and not while it is.
        """
        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = step()
        return graph.replay, outputs

    @property
    def warm_ups(self) -> int:
        """How often `capture` runs a step."""
        return _WARM_UPS

    def launches(self, steps: Sequence[Step], times: int) -> list[Launch]:
        """What so many calls of the steps in turn make the device do, in order, each after a cold L2 cache.

        Empty where the profiler sees nothing.
        """
        if self._flushes is None:
            self._trace(self.flush)  # the profiler's first use may miss what comes first
            self._flushes = {launch.key for launch in self._trace(self.flush)}

        def calls() -> None:
            for i in range(times):
                self.flush()
                steps[i % len(steps)]()

        return [launch for launch in self._trace(calls) if launch.key not in self._flushes]

    def _trace(self, calls: Callable[[], object]) -> list[Launch]:
        self.wait()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            calls()
            self.wait()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(path))
            return launches_of(json.loads(path.read_text(encoding="utf-8")))

    def release(self) -> None:
        """Give unused memory back, so that the next case finds it whole."""
        gc.collect()
        torch.cuda.empty_cache()
