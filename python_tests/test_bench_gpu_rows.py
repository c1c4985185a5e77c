"""`ccp-bench gpu` on a pretended device: how a case is timed and judged, and what is told of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import one_thread  # noqa: F401
from pretended_gpu import RATES, PretendedGpu, kernel

from ccp_fast.bench import results
from ccp_fast.bench.accuracy import Errors, beyond_budget, errors
from ccp_fast.bench.baselines import cross_entropy
from ccp_fast.bench.case import Aim, Case, Implementation, Outputs, Step, Work
from ccp_fast.bench.cases import hopper, select
from ccp_fast.bench.cases.gpu import TEMPERATURE, gpu_cases
from ccp_fast.bench.gpu import machine, report, runner
from ccp_fast.bench.gpu.timing import interleave
from ccp_fast.bench.results import GpuFindings, Measured, Row, compare, judge, read_rows
from ccp_fast.bench.tables import console
from ccp_fast.bench.timing import FEWEST_ROUNDS

TOY = gpu_cases("toy", "cpu")
OPTIONS = runner.Options("toy", seconds=0.0, compile=False, runs=3)


# --- timing -----------------------------------------------------------------------------------------------------


def test_samples_begin_with_a_cold_cache_and_take_the_inputs_in_turn() -> None:
    gpu, calls = PretendedGpu(), list[str]()

    def step(name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            gpu.log.append(name)
            calls.append(name)
            gpu.now += seconds

        return run

    steps = {"quick": [step("q0", 1e-3), step("q1", 1e-3)], "slow": [step("s", 10e-3)]}
    times, issue = interleave(steps, 0.0, gpu, clock=lambda: gpu.now)
    assert [len(times[name].rounds) for name in ("quick", "slow")] == [FEWEST_ROUNDS] * 2
    assert times["quick"].percentile(50) == pytest.approx(1e-3, rel=1e-4)  # the flush is outside
    assert times["slow"].percentile(50) == pytest.approx(10e-3, rel=1e-4)
    assert issue == {"quick": pytest.approx(1e-3), "slow": pytest.approx(10e-3)}
    timed = [name for name in calls if name != "s"][3:]  # three tries for the estimate
    assert timed[:4] == ["q0", "q1", "q0", "q1"]
    # To issue `slow` takes 10 ms and a flush 1 ms: 15 flushes give the CPU half as much again.
    assert gpu.log[gpu.log.index("flush 15") + 1] == "s"
    assert gpu.log[gpu.log.index("flush 2") + 1] == "q0"


# --- one case ---------------------------------------------------------------------------------------------------


def toy_case(*implementations: Implementation, **more: Any) -> Case:
    truth = (torch.ones((), dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    fields = {"family": "f", "name": "n", "setting": "s", "shape": "1", "inputs": lambda: None,
              "work": lambda inputs: Work(1.0, 1.0), "implementations": implementations,
              "truth": lambda inputs: truth} | more  # fmt: skip
    return Case(**fields)


def giving(value: float, gradient: float = 1.0) -> Callable[[Any], Step]:
    return lambda inputs: lambda: (torch.tensor(value), torch.full((3,), gradient))


def raising(error: Exception) -> Callable[[Any], Step]:
    def prepare(inputs: Any) -> Step:
        raise error

    return prepare


OURS = Implementation("ccp_fast", "ours", giving(1.0))
EAGER = Implementation("eager", "eager", giving(1.0, 1.000001))


@pytest.mark.parametrize(
    "words", ["c2+sop+float32", "proxy_nca-k1+1e6+tf32", "k-center+1e6", "projection+bfloat16", "retrieval"]
)
def test_a_row_has_everything(words: str) -> None:
    for case in select(TOY, words):
        row = runner.measure(case, OPTIONS, RATES, PretendedGpu())
        assert row.precision == case.precision
        assert row.ours.ratio == 1.0
        assert row.gpu is not None
        assert row.gpu.launches == (1, 1 if case.passes else 0)
        assert (row.gpu.graph, row.gpu.runs, row.gpu.differing) == ("same bits", 3, 0)
        assert row.gpu.graph_ms is not None
        assert all(m.issue_ms is not None and m.samples >= FEWEST_ROUNDS for m in row.implementations)
        assert {"torch.compile", "ccp_fast, CUDA graph"}.isdisjoint(m.name for m in row.implementations)
        json.dumps(json.loads(results.to_json([row], {}, {})))


def test_who_cannot_run_is_named_whatever_was_raised() -> None:
    others = (
        Implementation("liger", "peer", raising(ModuleNotFoundError("no", name="liger_kernel"))),
        Implementation("cce", "peer", raising(AssertionError())),
        Implementation("large", "peer", raising(torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"))),
    )
    row = runner.measure(toy_case(OURS, EAGER, *others), OPTIONS, RATES, PretendedGpu())
    assert row.failed == {
        "liger": "not installed (liger_kernel)",
        "cce": "AssertionError: ",
        "large": "OutOfMemoryError: CUDA out of memory. Tried",
    }


def test_what_ours_raises_is_raised_and_a_lack_of_memory_leaves_the_case_out() -> None:
    broken = Implementation("ccp_fast", "ours", raising(RuntimeError("an illegal access")))
    with pytest.raises(RuntimeError, match="an illegal access"):
        runner.measure(toy_case(broken), OPTIONS, RATES, PretendedGpu())
    large = Implementation("ccp_fast", "ours", raising(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(runner.LeftOut, match="no room: OutOfMemoryError: CUDA out of memory"):
        runner.measure(toy_case(large), OPTIONS, RATES, PretendedGpu())


def test_a_case_whose_truth_does_not_fit_is_left_out() -> None:
    def truth(inputs: Any) -> Outputs:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(runner.LeftOut, match="no room"):
        runner.measure(toy_case(OURS, EAGER, truth=truth), OPTIONS, RATES, PretendedGpu())


def test_ours_may_err_twice_as_much_as_eager_and_a_little_more() -> None:
    def wrong(ours: Implementation, eager: Implementation = EAGER, **more: Any) -> list[str]:
        return runner.measure(toy_case(ours, eager, **more), OPTIONS, RATES, PretendedGpu()).wrong

    def named(name: str, role: Any, *numbers: float) -> Implementation:
        return Implementation(name, role, giving(*numbers))

    coarse = named("eager", "eager", 1.001, 1.001)
    assert wrong(OURS) == []
    assert wrong(named("ccp_fast", "ours", 1.0, 1.00002)) == [
        "ccp_fast: its gradient is off by 2e-05 of the largest number, expected at most 6.9e-06"
    ]
    assert wrong(named("ccp_fast", "ours", 1.002, 1.002), coarse) == []
    assert "its value is off by 0.0021 " in wrong(named("ccp_fast", "ours", 1.0021, 1.0), coarse)[0]
    assert wrong(named("ccp_fast", "ours", 1.003, 1.003), precision="bfloat16") == []
    assert "off by inf" in wrong(named("ccp_fast", "ours", math.nan))[0]
    assert beyond_budget(None, None, "tf32") == "its results were compared with nothing"
    path = runner.measure(
        toy_case(OURS, EAGER, named("another way", "path", 2.0)), OPTIONS, RATES, PretendedGpu()
    )
    assert path.wrong == ["another way: its value is off by 1 of the largest number, expected at most 5e-06"]


def test_what_a_margin_decides_is_no_error() -> None:
    truth = torch.zeros((), dtype=torch.float64), torch.ones(3, 2, dtype=torch.float64)
    outputs = torch.zeros(()), torch.tensor([[1.0, 1.0], [1.5, 1.0], [1.0, 1.0]])
    assert errors(outputs, truth) == Errors(0.0, 0.5)
    undecided = torch.zeros(()), torch.tensor([0.0, 0.4, 9.0])
    found = errors(outputs, truth, undecided)
    assert found.gradient == pytest.approx(0.1)
    nan = outputs[0], outputs[1] * torch.nan
    assert errors(nan, truth, undecided).gradient == math.inf


def test_a_peer_of_a_lower_precision_is_no_rival() -> None:
    peers = (
        Implementation("rounds", "peer", giving(1.0, 1.001)),
        Implementation("good", "peer", giving(1.0, 1.00001)),
    )
    row = runner.measure(toy_case(OURS, EAGER, *peers), OPTIONS, RATES, PretendedGpu())
    assert [m.name for m in row.role("coarse")] == ["rounds"]
    assert [m.name for m in row.role("peer")] == ["good"]
    assert runner._usual_errors([], "bfloat16") == Errors(1e-2, 1e-2)


def test_other_bits_are_counted_in_steps_and_in_graphs() -> None:
    count = iter(range(1000))
    drifting = Implementation(
        "ccp_fast",
        "ours",
        lambda inputs: lambda: (torch.tensor(1.0), torch.full((3,), 1.0 + 1e-6 * (next(count) % 2))),
    )
    row = runner.measure(toy_case(drifting), OPTIONS, RATES, PretendedGpu())
    assert row.gpu is not None
    assert 0 < row.gpu.differing < 3
    minus = Implementation(
        "ccp_fast", "ours", lambda inputs: lambda: (torch.tensor(0.0 * sign()), torch.zeros(3))
    )
    signs = iter([1.0, -1.0] * 1000)

    def sign() -> float:
        return next(signs)

    row = runner.measure(toy_case(minus), OPTIONS, RATES, PretendedGpu())
    assert row.gpu is not None
    assert row.gpu.differing > 0  # −0 is equal to 0 and has other bits


def test_a_step_that_cannot_be_captured_says_why() -> None:
    class NoGraphs(PretendedGpu):
        def capture(self, step: Step) -> tuple[Callable[[], None], Outputs]:
            try:
                raise RuntimeError("a synchronisation while capturing")
            finally:
                raise RuntimeError("the capture was broken")

    row = runner.measure(toy_case(OURS), OPTIONS, RATES, NoGraphs())
    assert row.gpu is not None
    assert row.gpu.graph == "not captured: RuntimeError: a synchronisation while capturing"
    assert row.gpu.graph_ms is None


def test_small_inputs_are_made_thrice_and_large_ones_once() -> None:
    made = []

    class Heavy(PretendedGpu):
        def allocated(self) -> int:
            return 4000 * len(made)

    def inputs() -> None:
        made.append(None)

    runner.measure(toy_case(OURS, inputs=inputs), OPTIONS, RATES, Heavy())
    assert len(made) == 1
    made.clear()
    runner.measure(toy_case(OURS, inputs=inputs), OPTIONS, RATES, PretendedGpu())
    assert len(made) == 3


# --- aims -------------------------------------------------------------------------------------------------------


def row(p50: float = 0.08, floor: float = 0.05, **more: Any) -> Row:
    ours = Measured("ccp_fast", "ours", 0.9 * p50, p50, 1.1 * p50, 9, 1.0, 1e-7, 1e-6, 1000, 0.1)
    findings = GpuFindings([kernel()], [kernel(), kernel()], "same bits", 0.07, 100, 0)
    return Row("losses", "c2", "sop", "128 vs 40", "", 4e9, 1e9, floor, "bytes", [ours], precision="bfloat16",
               gpu=findings, **more)  # fmt: skip


def test_aims_of_ours_alone() -> None:
    floor = judge(Aim("floor", "ours", 0.6), row())
    assert floor is not None
    assert (floor["got"], floor["met"]) == (pytest.approx(0.625), True)
    assert judge(Aim("floor", "ours", 0.6), row(floor=0.04))["met"] is False  # type: ignore[index]
    assert judge(Aim("time", "ours", 0.1), row())["met"] is True  # type: ignore[index]
    assert judge(Aim("time", "ours", 0.1), row(p50=0.11))["met"] is False  # type: ignore[index]
    launches = judge(Aim("launches", "ours", 2.0), row())
    assert launches is not None
    assert (launches["got"], launches["met"]) == (2, True)
    assert judge(Aim("launches", "ours", 1.0), row())["met"] is False  # type: ignore[index]
    blind = Row("f", "n", "s", "1", "", 1.0, 1.0, 1.0, "bytes", row().implementations)
    assert judge(Aim("launches", "ours", 2.0), blind) is None


def test_an_aim_without_a_rival_is_shown_as_not_judged(capsys: pytest.CaptureFixture[str]) -> None:
    from ccp_fast.bench.report import show_aims

    case = toy_case(OURS, aims=(Aim("speed", "peer", 1.0), Aim("time", "ours", 1e9)))
    found = runner.measure(case, runner.Options("full", 0.0, False, 1), RATES, PretendedGpu())
    assert [aim["met"] for aim in found.aims] == [None, True]
    show_aims(console(), [found])
    shown = capsys.readouterr().out
    assert "at least 1x as fast as peer" in shown
    assert "not judged" in shown


# --- rows and tables --------------------------------------------------------------------------------------------


def test_rows_of_both_formats_are_read_and_precisions_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(results.to_json([row()], {"threads": None, "device": "a GPU"}, {}))
    before = read_rows(path)
    (change,) = compare([row(p50=0.04)], None, before)
    assert (change.relative, change.precision) == (-0.5, "bfloat16")
    assert compare([row()], 2, before) == []  # rows of a CPU with two threads
    assert compare([row()], None, [{**before[0], "precision": "float32"}]) == []

    first = {"format": 1, "rows": [{k: v for k, v in before[0].items() if k not in ("precision", "gpu")}]}
    path.write_text(json.dumps(first))
    old = read_rows(path)
    assert compare([row()], None, old) == []
    assert len(compare([replace(row(), precision="float32")], None, old)) == 1


def test_tables_tell_everything_once(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row(failed={"Liger": "not installed (liger_kernel)"}),
        row(failed={"Liger": "not installed (liger_kernel)"}),
    ]
    rows[0].implementations.append(
        replace(rows[0].ours, name=hopper.NAME, role="path", p50_ms=0.06, ratio=0.75)
    )
    screen = console()
    report.show_ceilings(screen, RATES)
    report.show_rows(screen, rows)
    report.show_kernels(screen, rows[:1])
    report.show_missing(screen, {"losses c2 1e7 float32": "no room"}, {"k-center": "RuntimeError: no"})
    shown = capsys.readouterr().out
    assert "4000 GB/s" in shown
    assert "bfloat16 800" in shown
    assert "c2, sop, bfloat16" in shown
    assert "1 + 2" in shown
    assert "0 of 100" in shown
    assert shown.count("Liger: not installed (liger_kernel) (c2 sop, bfloat16, c2 sop, bfloat16)") == 1
    assert "left out: losses c2 1e7 float32: no room" in shown
    assert "ccp_fast, Hopper path: c2 sop, bfloat16: 0.06 ms, 0.75 of the time without it" in " ".join(
        shown.split()
    )
    assert "FAILED: k-center: RuntimeError: no" in shown
    assert "forward<float>" in shown


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("580.159.04, 1980\n", {"a": "580.159.04", "b": "1980"}),
        ("[N/A], 1980", {"a": None, "b": "1980"}),
        ("", {"a": None, "b": None}),
        ("No devices were found", {"a": None, "b": None}),
    ],
)
def test_what_nvidia_smi_does_not_tell_is_none(answer: str, found: dict[str, str | None]) -> None:
    assert machine.parse(answer, ("a", "b")) == found


def test_infinite_errors_fail() -> None:
    assert errors((torch.tensor(math.nan),), (torch.tensor(1.0).double(),)).value == math.inf
    large = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert errors((large,), (large + 2,)).value == 0.5
    assert large.tolist() == [1.0, 2.0]  # compared on a copy


def test_temperature_is_that_of_the_case() -> None:
    (case,) = select(TOY, "proxy_nca-k1+1e6+float32")
    inputs = case.inputs()
    ours = case.implementations[0].prepare(inputs)()[0]
    theirs = cross_entropy.loss_of(
        cross_entropy.eager(), TEMPERATURE, inputs.anchors, inputs.references, inputs.labels
    )
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-6, atol=1e-6)
