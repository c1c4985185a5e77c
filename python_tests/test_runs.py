"""Runs as they are kept: which checkpoints, `--resume auto`, reports."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_training
import torch
from training_runs import QUIET, assert_same_results, check_page, tiny_data  # noqa: F401
from typer.testing import CliRunner, Result

pytest.importorskip("safetensors")

from ccp_fast.cli import report_command
from ccp_fast.cli.train_command import app
from ccp_fast.training import protocols
from ccp_fast.training.checkpoint import Checkpoint
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.errors import UserError
from ccp_fast.training.interrupt import Interrupted
from ccp_fast.training.learner import Learner
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.report import run_report, write_run_report, write_runs_report
from ccp_fast.training.run_folder import RunFolder

SETTINGS = [part for setting in tiny_training.SETTINGS for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ccp_train(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def crash_at(step: int, patch: pytest.MonkeyPatch) -> None:
    real = Learner.train_step
    patch.setattr(Learner, "train_step", lambda one: real(one) if one.step != step else 1 / 0)


# Checkpoints


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ([], [2, 8, 9]),
        (["checkpoints.keep=1"], [2, 9]),
        (["checkpoints.keep=4"], [2, 6, 7, 8, 9]),
        (["checkpoints.keep_every=3"], [2, 3, 6, 8, 9]),
    ],
)
def test_checkpoints_that_stay(settings: list[str], kept: list[int], tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_training.config(*settings), {})
    for step in range(1, 10):
        run.save(Checkpoint(step, min(step, 2), {}))
    assert [int(p.stem[5:]) for p in sorted((run.path / "checkpoints").iterdir())] == kept


SPARSE = ["checkpoints.every=3", "checkpoints.keep=100"]


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        (["checkpoints.keep=100"], [4, 8, 12, 16, 20, 24]),
        (SPARSE, [4, 8, 12, 24]),  # 4 and 8: the best so far
        ([*SPARSE, "checkpoints.keep_every=10"], [4, 8, 12, 20, 24]),
        ([*SPARSE, "steps=22"], [4, 8, 12, 22]),
        ([*SPARSE, "evaluation.patience=3"], [4, 8, 12, 20]),  # where it ends early
        ([*SPARSE, "protocol.name=conventional"], [12, 24]),  # the last is reported, whatever was before
        (["checkpoints.every=100", "protocol.name=conventional"], [24]),
    ],
)
def test_checkpoints_that_are_written(
    settings: list[str], saved: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whatever they are, a run that crashes or is stopped goes on to the same bits, its rows among them."""
    metric = {4: 0.5, 8: 0.7, 12: 0.1, 16: 0.2, 20: 0.3, 22: 0.3, 24: 0.1}
    monkeypatch.setattr("ccp_fast.training.best.monitored", lambda row: metric[row["step"]])
    config = tiny_training.config(*settings)
    protocols.train(config, tmp_path / "whole", QUIET)
    assert [int(p.stem[5:]) for p in sorted((tmp_path / "whole" / "checkpoints").iterdir())] == saved
    with monkeypatch.context() as patch:
        crash_at(19, patch)  # behind the evaluation of step 16
        with pytest.raises(ZeroDivisionError):
            protocols.train(config, tmp_path / "broken", QUIET)
    steps = [row["step"] for row in read_rows(tmp_path / "broken" / "metrics.jsonl")]
    assert steps == [4, 8, 12, 16]  # the last may be of behind the newest checkpoint
    real = Learner.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", lambda one: stop_at(18, one, real))
        with pytest.raises(Interrupted, match="saved at step 18"):
            protocols.resume(tmp_path / "broken", QUIET)
    protocols.resume(tmp_path / "broken", QUIET)
    assert_same_results(tmp_path / "whole", tmp_path / "broken")


def stop_at(step: int, one: Learner, real: Callable[[Learner], float]) -> float:
    if one.step == step - 1:
        signal.raise_signal(signal.SIGINT)
    return real(one)


def test_saving_has_its_own_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = RunFolder.save

    def slow(run: RunFolder, content: Checkpoint) -> None:
        time.sleep(0.1)
        real(run, content)

    monkeypatch.setattr(RunFolder, "save", slow)
    summary = protocols.train(tiny_training.config("method=plain", "steps=8"), tmp_path / "run", QUIET)
    seconds = summary["seconds"]
    assert seconds["saving"] > 0.2
    parts = [seconds[part] for part in ("training", "evaluation", "saving")]
    assert seconds["shares"]["saving"] == pytest.approx(seconds["saving"] / sum(parts))
    run = RunFolder.open(tmp_path / "run")
    assert "saving checkpoints <b>" in write_run_report(run).read_text()
    # Summaries and checkpoints from before it had.
    del summary["seconds"]["saving"], summary["seconds"]["shares"]["saving"]
    run.write_json("summary.json", summary)
    assert "saving checkpoints" not in write_run_report(run).read_text()
    clock, latest = PhaseClock(torch.device("cpu")), run.latest()
    assert latest is not None
    state = latest.state["learner"]["clock"]
    del state["seconds"]["saving"]
    clock.load_state_dict(state)
    with clock("saving"):
        pass
    assert clock.cpu_seconds == state["cpu_seconds"]  # which saving is no part of


# Reports


@pytest.mark.parametrize("begun", [False, True])
def test_the_report_behind_a_run_embeds_nothing_again(begun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*SETTINGS, "--quiet", "--out", "run", "--resume", "auto"]
    if begun:
        with monkeypatch.context() as patch:
            crash_at(10, patch)
            assert isinstance(ccp_train(*command).exception, ZeroDivisionError)
    embedded = run_report.embedded
    monkeypatch.setattr(run_report, "embedded", lambda *_: pytest.fail("test classes are embedded again"))
    assert ccp_train(*command).exit_code == 0
    behind = Path("run/report.html").read_bytes()
    monkeypatch.setattr(run_report, "embedded", embedded)
    assert ccp_train("--report", "run").exit_code == 0
    assert Path("run/report.html").read_bytes() == behind


# --resume auto


def test_the_same_command_starts_a_run_and_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*SETTINGS, "--quiet", "--resume", "auto", "--out"]
    assert ccp_train(*command, "unbroken").exit_code == 0
    with monkeypatch.context() as patch:
        crash_at(14, patch)
        assert isinstance(ccp_train(*command, "broken").exception, ZeroDivisionError)
    assert ccp_train(*command, "broken").exit_code == 0
    assert_same_results(tmp_path / "unbroken", tmp_path / "broken")
    other = ccp_train(*command, "broken", "--set", "optimizer.lr=0.5")
    assert other.exit_code == 2
    assert "broken was made with other settings (optimizer.lr: 0.001 there, 0.5 here)" in other.stderr


def test_without_a_folder_it_goes_on_with_the_last_unfinished_of_these_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = [*SETTINGS, "--quiet", "--method", "plain", "--steps", "8", "--resume", "auto"]
    with monkeypatch.context() as patch:
        crash_at(6, patch)
        ccp_train(*command)
        ccp_train(*command, "--seed", "3")
    assert ccp_train(*command).exit_code == 0
    state = {p.name: (p / "summary.json").exists() for p in Path("runs").iterdir()}
    assert state == {"glyphs-c2-plain-001": True, "glyphs-c2-plain-002": False}
    assert ccp_train(*command).exit_code == 0  # a third: the first is finished
    assert (Path("runs") / "glyphs-c2-plain-003" / "summary.json").exists()


# ccp-report


def test_a_page_over_runs(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        crash_at(6, patch)
        with pytest.raises(ZeroDivisionError):
            protocols.train(tiny_training.config(), Path("half <way>"), QUIET)
    paths = [runs / "plain", runs / "ccp", runs / "deep" / "plain", Path("half <way>")]
    result = CliRunner().invoke(report_command.app, [*map(str, paths), "--out", "all.html"])
    assert result.exit_code == 0, result.output
    assert result.stdout == "report: all.html\n"
    page = Path("all.html").read_text()
    check_page(page)
    assert "deep/plain" in page  # two are called plain
    assert "half &lt;way&gt;" in page
    assert "half <way>" not in page
    assert "4 of 24" in page  # unfinished
    for path in paths[:3]:
        summary = RunFolder.open(path).summary
        assert summary is not None
        assert f"{summary['test']['map_at_r']:.4f}" in page
    assert "<td>optimizer.lr</td><td>0.001</td><td>0.001</td><td>0.5</td>" in page
    assert "<td>optimizer.name</td>" not in page  # the same in all


def test_a_page_over_what_is_no_run_is_told(runs: Path) -> None:
    result = CliRunner().invoke(report_command.app, ["nowhere"])
    assert result.exit_code == 2
    assert result.stderr == "nowhere is not a run folder: it has no config.yaml\n"
    with pytest.raises(UserError, match="expected different folders, got one twice"):
        write_runs_report([runs / "plain", runs / "deep" / ".." / "plain"], Path("a.html"))
