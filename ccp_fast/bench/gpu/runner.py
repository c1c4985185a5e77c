"""Measures one case on a GPU: results, times, memory, and what only a GPU can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ccp_fast.bench.accuracy import Errors, beyond_budget, errors
from ccp_fast.bench.case import Case, Implementation, Outputs, Precision, Role, Size, Step, Work
from ccp_fast.bench.gpu.ceilings import Rates, matmul_precision
from ccp_fast.bench.gpu.device import Gpu
from ccp_fast.bench.gpu.kernels import kernels_of
from ccp_fast.bench.gpu.timing import interleave
from ccp_fast.bench.launch import KernelWork, Launch
from ccp_fast.bench.results import GpuFindings, Kernel, Measured, Row, judge
from ccp_fast.bench.timing import Times, ratio

_SETS = 3  # of inputs, used in turn
_LARGE = 4  # times the L2 cache: of inputs as large as that one set is enough
_COARSE = 20  # a peer whose error is so many times eager's does less work, and is no rival
_USUAL_ERROR: dict[Precision, float] = {"float32": 1e-6, "tf32": 1e-3, "bfloat16": 1e-2}  # eager may be lucky
_PASSES: dict[Size, int] = {"full": 20, "quick": 5, "toy": 2}  # whose kernels are timed
_REPLAY = "ccp_fast, CUDA graph"


class LeftOut(Exception):
    """A case that this GPU has no room for."""


@dataclass(frozen=True)
class Options:
    """Of a run."""

    size: Size
    seconds: float  # of timing per case
    compile: bool
    runs: int  # of the same step, to compare their bits


@dataclass
class _Entrant:
    """A competitor that runs: its step on each set of inputs, and what was found out about it."""

    competitor: Implementation
    steps: list[Step]
    errors: Errors | None
    extra_bytes: int | None


def measure(case: Case, options: Options, rates: Rates, gpu: Gpu) -> Row:
    """All of one case.

    A competitor that cannot run is left out and named. What ours raises is raised, but for a lack of memory: then
    LeftOut is.
    """
    try:
        with matmul_precision(case.precision):
            return _measure(case, options, rates, gpu)
    except torch.OutOfMemoryError as error:
        raise LeftOut(f"no room: {_sentence(error)}") from None
    finally:
        gpu.release()


def _measure(case: Case, options: Options, rates: Rates, gpu: Gpu) -> Row:
    before = gpu.allocated()
    inputs = case.inputs()
    large = gpu.allocated() - before >= _LARGE * gpu.cache_bytes
    sets = [inputs] if large else [inputs, *(case.inputs() for _ in range(_SETS - 1))]
    work = case.work(inputs)
    floor, floor_from = work.floor(rates.flops_per_second(case), rates.bytes_per_second)

    failed: dict[str, str] = {}
    entrants = _enter(case, sets, options, gpu, failed)
    ours = entrants[0]
    forward, backward = _kernels(case, ours, sets, work, _PASSES[options.size], rates, gpu)
    graph, replay = _graph(ours.competitor, inputs, gpu)
    differing = _differing(ours.competitor, inputs, options.runs, case.in_place)
    findings = GpuFindings(forward, backward, graph, None, options.runs, differing)

    steps = {entrant.competitor.name: entrant.steps for entrant in entrants}
    times, issue = interleave({**steps, **replay}, options.seconds, gpu)
    if replay:
        findings = replace(findings, graph_ms=times[_REPLAY].percentile(50) * 1e3)
    usual = _usual_errors(entrants, case.precision)
    measured = [
        _measured(entrant, _role(entrant, usual), times, ours.competitor.name, issue) for entrant in entrants
    ]
    row = Row(
        *case.key,
        case.shape,
        work.note,
        work.flops,
        work.bytes,
        floor * 1e3,
        floor_from,
        measured,
        failed,
        precision=case.precision,
        gpu=findings,
        wrong=_wrong(entrants, case.precision),
    )
    return replace(row, aims=_judged(case, row) if options.size == "full" else [])


def _enter(
    case: Case, sets: Sequence[Any], options: Options, gpu: Gpu, failed: dict[str, str]
) -> list[_Entrant]:
    """Those that run, ours first."""
    truth = case.truth(sets[0])
    undecided = case.undecided(sets[0]) if case.undecided else None
    gpu.release()
    entrants = []
    for competitor in case.implementations:
        if competitor.role == "compiled" and not options.compile:
            continue
        try:
            entrants.append(_entrant(case, competitor, sets, truth, undecided, gpu))
        # A peer is somebody else's code, and a compiler: it may raise anything.
        except Exception as error:
            if competitor.role == "ours":
                raise
            failed[competitor.name] = _sentence(error)
        gpu.release()
    return entrants


def _entrant(
    case: Case,
    competitor: Implementation,
    sets: Sequence[Any],
    truth: Outputs,
    undecided: Outputs | None,
    gpu: Gpu,
) -> _Entrant:
    steps = [competitor.prepare(inputs) for inputs in sets]
    found = None
    for step in steps:
        outputs = step()  # the first warm-up, too
        if outputs and found is None:
            found = errors(outputs, truth, undecided)
        del outputs
    gpu.wait()
    extra = None if competitor.role == "copy" else gpu.peak_extra_bytes(steps[-1], case.in_place)
    return _Entrant(competitor, steps, found, extra)


def _kernels(
    case: Case, ours: _Entrant, sets: Sequence[Any], work: Work, passes: int, rates: Rates, gpu: Gpu
) -> tuple[list[Kernel], list[Kernel]]:
    """Of forward and of backward."""
    parts: list[list[Step]] = [ours.steps]
    if case.passes is not None:
        parts = [list(steps) for steps in zip(*map(case.passes, sets), strict=True)]

    def work_of(launches: Sequence[Launch]) -> Sequence[KernelWork | None]:
        assert case.kernel_work is not None
        return case.kernel_work(sets[0], work, launches, gpu.multiprocessors)

    found = [
        kernels_of(
            gpu.launches(steps, passes),
            passes,
            work_of if case.kernel_work else None,
            gpu.limits,
            rates,
            case.precision,
        )
        for steps in parts
    ]
    return found[0], found[1] if case.passes else []


def _graph(ours: Implementation, inputs: Any, gpu: Gpu) -> tuple[str, dict[str, list[Step]]]:
    """Can our step be captured, and does a replay give the bits of as many plain calls?"""
    plain = ours.prepare(inputs)
    try:
        replay, outputs = gpu.capture(ours.prepare(inputs))
    except RuntimeError as error:
        return f"not captured: {_sentence(_first(error))}", {}
    replay()
    for _ in range(gpu.warm_ups):
        plain()
    same = bool(_same_bits(plain(), outputs))

    def step() -> Outputs:
        replay()
        return outputs

    return "same bits" if same else "other bits", {_REPLAY: [step]}


def _differing(ours: Implementation, inputs: Any, runs: int, in_place: bool) -> int:
    """How many of the runs give other bits than the first; one that works in place starts anew each time."""
    step = ours.prepare(inputs)
    first = [output.clone() for output in step()]
    same = []
    for _ in range(runs):
        if in_place:
            step = ours.prepare(inputs)
        same.append(_same_bits(step(), first))
    return sum(not each for each in torch.stack(same).tolist())


def _same_bits(these: Outputs, those: Outputs) -> Tensor:
    """One bool, on the device: nobody waits for it."""
    return torch.stack([(_bits(a) == _bits(b)).all() for a, b in zip(these, those, strict=True)]).all()


def _bits(x: Tensor) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.detach().flatten().view(integer)


def _eager_errors(entrants: Sequence[_Entrant]) -> Errors | None:
    """Of the first that ran: PyTorch's operators with autograd."""
    return next((e.errors for e in entrants if e.competitor.role == "eager" and e.errors), None)


def _wrong(entrants: Sequence[_Entrant], precision: Precision) -> list[str]:
    """Errors of ours, in whatever way, that are too large."""
    eager = _eager_errors(entrants)
    ours = [entrant for entrant in entrants if entrant.competitor.role in ("ours", "path")]
    found = {entrant.competitor.name: beyond_budget(entrant.errors, eager, precision) for entrant in ours}
    return [f"{name}: {problem}" for name, problem in found.items() if problem]


def _usual_errors(entrants: Sequence[_Entrant], precision: Precision) -> Errors:
    """What eager PyTorch's errors are, or could be with less luck."""
    eager = _eager_errors(entrants) or Errors(0.0, 0.0)
    usual = _USUAL_ERROR[precision]
    return Errors(max(eager.value, usual), max(eager.gradient or 0.0, usual))


def _role(entrant: _Entrant, usual: Errors) -> Role:
    found = entrant.errors
    if entrant.competitor.role != "peer" or found is None:
        return entrant.competitor.role
    coarse = found.value > _COARSE * usual.value or (found.gradient or 0.0) > _COARSE * (
        usual.gradient or 0.0
    )
    return "coarse" if coarse else "peer"


def _measured(
    entrant: _Entrant, role: Role, times: dict[str, Times], ours: str, issue: dict[str, float]
) -> Measured:
    name, found = entrant.competitor.name, entrant.errors
    p20, p50, p80 = (times[name].percentile(p) * 1e3 for p in (20, 50, 80))
    return Measured(
        name,
        role,
        p20,
        p50,
        p80,
        samples=len(times[name].samples),
        ratio=ratio(times[name], times[ours]),
        value_error=found.value if found else None,
        gradient_error=found.gradient if found else None,
        extra_bytes=entrant.extra_bytes,
        issue_ms=issue[name] * 1e3,
    )


def _judged(case: Case, row: Row) -> list[dict[str, Any]]:
    """Every aim; one that cannot be judged, for want of a rival or a figure, says so."""
    open_ = {"got": None, "met": None}
    return [
        judge(aim, row) or {"kind": aim.kind, "against": aim.against, "bound": aim.bound, **open_}
        for aim in case.aims
    ]


def _first(error: BaseException) -> BaseException:
    """What broke a capture: that the capture was broken is raised after it."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _sentence(error: BaseException) -> str:
    """The first line: compilers write pages."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed ({error.name})"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
