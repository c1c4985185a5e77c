"""The benchmarks: what they compute from times and work, that competitors compute the same, that the command runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import one_thread  # noqa: F401
from typer.testing import CliRunner

from ccp_fast.bench import memory, report, results
from ccp_fast.bench.accuracy import errors
from ccp_fast.bench.baselines import by_hand
from ccp_fast.bench.case import Aim, Case, Implementation, Work
from ccp_fast.bench.cases import all_cases, find, losses, projection, select
from ccp_fast.bench.ceilings import Ceilings
from ccp_fast.bench.ceilings import measure as measure_ceilings
from ccp_fast.bench.command import app
from ccp_fast.bench.machine import Load
from ccp_fast.bench.results import Measured, Row, compare, judge, read_rows, to_json
from ccp_fast.bench.runner import Options, measure
from ccp_fast.bench.tables import console
from ccp_fast.bench.timing import FEWEST_ROUNDS, Times, interleave, ratio

CEILINGS = Ceilings(bytes_per_second=10e9, flops_per_second=100e9, bytes_how="", flops_how="")
QUIET = Options("toy", seconds=0.0, threads=1, compile=False, memory=False)
TOY = all_cases("toy")


# --- floors -----------------------------------------------------------------------------------------------------


def test_the_floor_is_the_larger_of_both() -> None:
    assert Work(flops=4e9, bytes=1e9).floor(100e9, 50e9) == (pytest.approx(0.04), "FLOPs")
    assert Work(flops=1e9, bytes=4e9).floor(100e9, 50e9) == (pytest.approx(0.08), "bytes")


def test_work_of_a_dense_loss_is_three_products() -> None:
    inputs = losses.make_inputs(losses.Shape(anchors=64, dim=16, classes=40, per_class=4))
    work = losses.work(inputs, active=inputs.pairs)
    assert work.flops == 6 * 64 * 160 * 16
    assert work.bytes == 2 * 4 * 16 * (64 + 160)  # read once, gradients written once, float32


def test_work_of_a_hinge_loss_counts_the_active_pairs() -> None:
    a = torch.eye(2, requires_grad=True)
    proxies = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]]], requires_grad=True)
    inputs = losses.Inputs(a, proxies, torch.tensor([0, 1]))
    c1 = next(loss for loss in losses.LOSSES if loss.name == "c1")
    assert (
        losses.active_pairs(c1.eager, inputs) == 3
    )  # both positives, and the negative of similarity 0.6 > 0.5


def test_work_of_a_projection_is_four_passes() -> None:
    inputs = projection.make_inputs([(3, 4), (5,)])
    assert projection.work(inputs).bytes == 4 * 4 * 17


def test_resnet_50_has_the_parameters_it_is_known_for() -> None:
    shapes = projection.resnet50_shapes()
    assert len(shapes) == 161
    assert sum(math.prod(shape) for shape in shapes) == 25_557_032
    assert shapes.count((512, 512, 3, 3)) == 3


def test_ceilings_are_rates_of_this_machine() -> None:
    found = measure_ceilings(1, megabytes=1)
    assert 1e8 < found.bytes_per_second < 1e13
    assert 1e8 < found.flops_per_second < 1e14


# --- times ------------------------------------------------------------------------------------------------------


class Clock:
    """Stands still until a step takes its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def step(self, name: str, seconds: float) -> Callable[[], None]:
        def run() -> None:
            self.now += seconds
            self.calls.append(name)

        return run


def test_rounds_are_interleaved_and_quick_steps_repeated() -> None:
    clock = Clock()
    times = interleave({"quick": clock.step("quick", 1e-3), "slow": clock.step("slow", 1.0)}, 0.0, clock)
    assert [len(times[name].rounds) for name in ("quick", "slow")] == [FEWEST_ROUNDS] * 2
    assert len(times["slow"].samples) == FEWEST_ROUNDS
    assert len(times["quick"].samples) == 5 * FEWEST_ROUNDS
    turns = [name for name, before in zip(clock.calls[2:], clock.calls[1:], strict=False) if name != before]
    assert turns[:3] == ["quick", "slow", "quick"]
    assert times["slow"].percentile(50) == pytest.approx(1.0)


def test_a_sample_of_a_very_quick_step_is_many_calls() -> None:
    clock = Clock()
    times = interleave({"tiny": clock.step("tiny", 1e-5)}, 0.0, clock)
    assert len(clock.calls) == 1 + 100 * len(times["tiny"].samples)
    assert times["tiny"].percentile(20) == pytest.approx(1e-5)


def test_timing_goes_on_for_the_seconds_asked_for() -> None:
    clock = Clock()
    interleave({"slow": clock.step("slow", 1.0)}, 10.0, clock)
    assert len(clock.calls) == 1 + 10


def test_the_ratio_is_taken_within_each_round() -> None:
    ours = Times(rounds=[1.0, 10.0, 1.0])  # the machine was slow in the second round, for both
    theirs = Times(rounds=[3.0, 30.0, 2.0])
    assert ratio(theirs, ours) == 3.0


# --- errors -----------------------------------------------------------------------------------------------------


def test_errors_are_relative_to_the_largest_true_number() -> None:
    truth = (torch.tensor(2.0).double(), torch.tensor([0.0, 4.0]).double())
    found = errors((torch.tensor(2.5), torch.tensor([1.0, 4.0])), truth)
    assert found.value == 0.25
    assert found.gradient == 0.25
    assert errors((torch.tensor(math.nan),), truth[:1]).value == math.inf


# --- competitors ------------------------------------------------------------------------------------------------


@pytest.fixture(params=[0.0, 1.0], ids=["dense", "sparse"])
def dense_from(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(by_hand, "DENSE_FROM", request.param)
    return float(request.param)


@pytest.mark.parametrize("case", TOY, ids=["-".join(case.key) for case in TOY])
def test_all_competitors_compute_the_same(case: Case, dense_from: float) -> None:
    inputs = case.inputs()
    truth = case.truth(inputs)
    for competitor in case.implementations:
        if competitor.role in ("compiled", "copy"):
            continue
        try:
            outputs = competitor.prepare(inputs)()
        except ModuleNotFoundError:
            assert competitor.role == "peer"  # a library that is not installed here
            continue
        found = errors(outputs, truth)
        assert found.value < 2e-6, competitor.name
        assert (found.gradient or 0.0) < 2e-5, competitor.name


def test_gradients_by_hand_follow_the_gradient_of_the_loss() -> None:
    inputs = losses.make_inputs(losses.SHAPES["toy"]["sop"])
    loss = by_hand.multi_similarity(2.0, 40.0, 0.5)
    one, three = (
        torch.autograd.grad(
            scale * by_hand.loss_of(loss, inputs.anchors, inputs.references, inputs.labels), inputs.leaves
        )
        for scale in (1.0, 3.0)
    )
    for a, b in zip(one, three, strict=True):
        torch.testing.assert_close(3 * a, b)


def test_every_case_has_its_own_key() -> None:
    assert len({case.key for case in TOY}) == len(TOY)
    assert [case.key for case in TOY] == [case.key for case in all_cases("full")]


def test_only_selects_by_family_case_or_setting() -> None:
    assert {case.family for case in select(TOY, "k-center,projection")} == {"k-center", "projection"}
    assert {case.name for case in select(TOY, "c2")} == {"c2"}
    with pytest.raises(ValueError, match=r"--only: expected some of .*c2.*, got nothing"):
        select(TOY, "c2,nothing")


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not memory.available(), reason="peak memory is read from Linux's /proc")
def test_peak_memory_counts_what_is_used_and_given_back() -> None:
    case = find(("losses", "multi_similarity", "sop"), "quick")
    by = {name: memory.peak_extra_bytes(case, name, "quick", 1) for name in ("ccp_fast", "eager")}
    matrix = 4 * 128 * 256 * 4
    assert by["ccp_fast"] is not None
    assert by["eager"] is not None
    assert by["eager"] > 3 * matrix  # similarities, and what autograd keeps of them
    assert by["ccp_fast"] < by["eager"]


# --- rows -------------------------------------------------------------------------------------------------------


def measured(role: str, p50: float, ratio: float, extra: int | None = None) -> Measured:
    return Measured(role, role, 0.9 * p50, p50, 1.1 * p50, 5, ratio, 1e-7, 1e-6, extra)  # type: ignore[arg-type]


def row(ours: float = 10.0) -> Row:
    implementations = [measured("ours", ours, 1.0, 1_000), measured("peer", 80.0, 8.0, 100_000)]
    return Row("losses", "c2", "sop", "128 vs 40", "", 4e9, 1e9, 5.0, "FLOPs", implementations)


def test_aims_are_judged_by_ratios() -> None:
    one = row()
    assert one.share_of_floor == 0.5
    speed = judge(Aim("speed", "peer", 5.0), one)
    assert speed == {"kind": "speed", "against": "peer", "bound": 5.0, "got": 8.0, "met": True}
    assert judge(Aim("speed", "peer", 9.0), one)["met"] is False  # type: ignore[index]
    size = judge(Aim("memory", "peer", 0.02), one)
    assert size is not None
    assert size["got"] == 0.01
    assert size["met"]
    assert judge(Aim("rate", "copy", 0.9), one) is None


def test_rows_keep_where_they_come_from(tmp_path: Path) -> None:
    facts = {"device": "a CPU", "threads": 2, "versions": {"torch": "2"}, "commit": "abc", "date": "2025"}
    path = tmp_path / "rows.json"
    path.write_text(to_json([row()], facts, {"size": "full"}))
    (kept,) = read_rows(path)
    assert {name: kept[name] for name in facts} == facts
    assert {"shape", "flops", "bytes", "floor_ms", "floor_from", "aims"} <= kept.keys()
    assert {"role", "p20_ms", "p50_ms", "p80_ms", "ratio", "extra_bytes", "value_error"} <= kept[
        "implementations"
    ][0].keys()


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"format": 0, "rows": []}'])
def test_another_file_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="--compare: expected a file written by `ccp-bench --out`, got"):
        read_rows(path)


def test_compare_tells_changes_from_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads(to_json([row(20.0)], {"threads": 2, "device": "a CPU"}, {}))["rows"]
    (clear,) = compare([row(10.0)], 2, before)
    (noise,) = compare([row(19.4)], 2, before)
    assert clear.relative == -0.5
    assert clear.clear
    assert not noise.clear
    assert compare([row()], 1, before) == []  # other threads
    report.show_changes(console(), [clear, noise], "a CPU", "another")
    shown = capsys.readouterr().out
    assert "another device" in shown
    assert "-50%" in shown
    assert "(-3%)" in shown


def test_a_competitor_that_cannot_run_is_named_and_ours_is_raised() -> None:
    def broken(inputs: object) -> Callable[[], tuple[torch.Tensor, ...]]:
        raise RuntimeError("no such thing\nand pages more")

    good = Implementation("ours", "ours", lambda inputs: lambda: (torch.ones(()),))
    bad = Implementation("theirs", "peer", broken)

    def case(*implementations: Implementation) -> Case:
        truth = (torch.ones((), dtype=torch.float64),)
        return Case(
            "f",
            "n",
            "s",
            "1",
            lambda: None,
            lambda inputs: Work(1.0, 1.0),
            implementations,
            lambda inputs: truth,
        )

    found = measure(case(good, bad), QUIET, CEILINGS, Load())
    assert found.failed == {"theirs": "RuntimeError: no such thing"}
    assert found.ours.value_error == 0.0
    with pytest.raises(RuntimeError, match="no such thing"):
        measure(case(Implementation("ours", "ours", broken)), QUIET, CEILINGS, Load())


def test_a_busy_machine_is_warned_about() -> None:
    assert Load(0.1, seconds=10.0, others=0.1).warning() is None
    assert "took 50% of its cores" in (Load(0.1, seconds=10.0, others=5.0).warning() or "")


# --- the command ------------------------------------------------------------------------------------------------


def test_the_command_measures_keeps_and_compares(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    options = ["cpu", "--quick", "--only", "k-center", "--seconds", "0", "--threads", "1", "--no-memory"]
    first = CliRunner().invoke(app, [*options, "--out", str(tmp_path)])
    (written,) = tmp_path.iterdir()
    written.rename(out)
    assert written.name.startswith("cpu_")
    assert first.exit_code == 0, first.output
    assert "farthest_points, sop" in first.output
    assert "GFLOP/s" in first.output
    second = CliRunner().invoke(app, [*options, "--compare", str(out)])
    assert second.exit_code == 0, second.output
    assert "Change of ccp_fast" in second.output
    (kept,) = results.read_rows(out)
    assert kept["threads"] == 1
    assert kept["versions"]["torch"] == torch.__version__
    assert kept["aims"] == []  # aims are for full shapes
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--only", "nothing", "--only: expected some of"),
        ("--compare", "absent.json", "--compare: expected a file written by"),
        ("--out", "absent/rows.json", "--out: expected a folder that exists, or a file in one"),
    ],
)
def test_wrong_options_are_one_sentence(
    option: str, value: str, message: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [device, option, value])
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
