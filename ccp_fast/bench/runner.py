"""Measures one case: results, times, memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ccp_fast.bench import memory
from ccp_fast.bench.accuracy import Errors, errors
from ccp_fast.bench.case import Case, Implementation, Size, Step
from ccp_fast.bench.ceilings import Ceilings
from ccp_fast.bench.machine import Load
from ccp_fast.bench.results import Measured, Row, judge
from ccp_fast.bench.timing import interleave, ratio


@dataclass(frozen=True)
class Options:
    """Of a run."""

    size: Size
    seconds: float  # of timing per case
    threads: int
    compile: bool
    memory: bool


def measure(case: Case, options: Options, ceilings: Ceilings, load: Load) -> Row:
    """All of one case. A competitor that cannot run is left out and named; if ours cannot, that is raised."""
    inputs = case.inputs()
    work = case.work(inputs)
    floor, floor_from = work.floor(ceilings.flops_per_second, ceilings.bytes_per_second)

    truth = case.truth(inputs)
    steps: dict[str, Step] = {}
    found: dict[str, Errors] = {}
    failed: dict[str, str] = {}
    for competitor in case.implementations:
        if competitor.role == "compiled" and not options.compile:
            continue
        try:
            step = competitor.prepare(inputs)
            outputs = step()  # also the first warm-up
        except (ImportError, RuntimeError, MemoryError) as error:
            if competitor.role == "ours":
                raise
            failed[competitor.name] = _sentence(error)
            continue
        steps[competitor.name] = step
        if outputs:
            found[competitor.name] = errors(outputs, truth)
    del truth

    with load.watched():
        times = interleave(steps, options.seconds)
    ours = times[case.implementations[0].name]
    measured = []
    for competitor in case.implementations:
        if competitor.name not in times:
            continue
        taken, wrong = times[competitor.name], found.get(competitor.name)
        p20, p50, p80 = (taken.percentile(p) * 1e3 for p in (20, 50, 80))
        measured.append(
            Measured(
                competitor.name,
                competitor.role,
                p20,
                p50,
                p80,
                samples=len(taken.samples),
                ratio=ratio(taken, ours),
                value_error=wrong.value if wrong else None,
                gradient_error=wrong.gradient if wrong else None,
                extra_bytes=_extra(case, competitor, options, failed),
            )
        )
    row = Row(
        *case.key, case.shape, work.note, work.flops, work.bytes, floor * 1e3, floor_from, measured, failed
    )
    judged = (judge(aim, row) for aim in case.aims if options.size == "full")
    return replace(row, aims=[verdict for verdict in judged if verdict is not None])


def _extra(case: Case, competitor: Implementation, options: Options, failed: dict[str, str]) -> int | None:
    if not options.memory or competitor.role == "copy":
        return None
    try:
        return memory.peak_extra_bytes(case, competitor.name, options.size, options.threads)
    except RuntimeError as error:
        failed[f"{competitor.name}, memory"] = _sentence(error)
        return None


def _sentence(error: BaseException) -> str:
    """The first line: compilers write pages."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
