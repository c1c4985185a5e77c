"""`evaluation.patience`: a run ends where no evaluation was better for long enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_training
from training_runs import QUIET, assert_same_results, tiny_data  # noqa: F401

pytest.importorskip("safetensors")

from ccp_fast.training import best, compare, protocols, trainer
from ccp_fast.training.best import Best
from ccp_fast.training.errors import UserError
from ccp_fast.training.learner import Learner
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.report import write_run_report
from ccp_fast.training.run_folder import RunFolder

METRIC = {4: 0.1, 8: 0.5, 12: 0.4, 16: 0.5, 20: 0.3, 24: 0.9}  # by step; an equal one is not better


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(best, "monitored", lambda row: METRIC[row["step"]])


@pytest.mark.parametrize(
    ("settings", "last", "best_step"),
    [
        (["method=plain", "evaluation.patience=2"], 16, 8),
        (["method=plain", "evaluation.patience=3"], 20, 8),
        (["method=plain", "evaluation.patience=4"], 24, 24),
        (["method=plain"], 24, 24),
        (["method=ccp", "evaluation.patience=2"], 16, 8),
        (["method=ccp", "ccp.warm_start=0.5", "evaluation.patience=2"], 20, 8),  # does not count to step 12
    ],
)
def test_a_run_ends_without_a_better_evaluation_and_goes_on_to_the_same_end(
    settings: list[str], last: int, best_step: int, scripted: None, tmp_path: Path
) -> None:
    config = tiny_training.config(*settings)
    summary = trainer.train(config, tmp_path / "unbroken", QUIET)
    assert (summary["steps"], summary["best_step"], summary["stopped_early"]) == (last, best_step, last < 24)
    assert summary["seconds"]["per_step"] == summary["seconds"]["training"] / last
    rows = read_rows(tmp_path / "unbroken" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(4, last + 1, 4))

    step = Learner.train_step
    with pytest.MonkeyPatch.context() as patch:  # behind an evaluation without gain
        patch.setattr(Learner, "train_step", lambda one: step(one) if one.step < 14 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.train(config, tmp_path / "broken", QUIET)
    trainer.resume(tmp_path / "broken", QUIET)
    assert_same_results(tmp_path / "unbroken", tmp_path / "broken")
    page = write_run_report(RunFolder.open(tmp_path / "broken")).read_text()
    assert f"Trained for {last} steps" in page
    assert ("Training ended there, after" in page) == (last < 24)


def test_a_run_killed_before_it_could_report_its_early_end(scripted: None, tmp_path: Path) -> None:
    config = tiny_training.config("method=plain", "evaluation.patience=2")
    expected = trainer.train(config, tmp_path / "run", QUIET)
    (tmp_path / "run" / "summary.json").unlink()
    again = trainer.resume(tmp_path / "run", QUIET)
    assert again["steps"] == expected["steps"] == 16
    assert again["test"] == expected["test"]


def test_networks_of_a_protocol_end_each_by_itself(scripted: None, tmp_path: Path) -> None:
    config = tiny_training.config("protocol.networks=2", "method=plain", "evaluation.patience=2")
    summary = protocols.train(config, tmp_path / "run", QUIET)
    assert (summary["steps"], summary["stopped_early"]) == (32, True)
    assert [one["steps"] for one in summary["networks"]] == [16, 16]


def test_the_report_of_a_run_from_before_there_was_an_early_end(tmp_path: Path) -> None:
    summary = trainer.train(tiny_training.config("method=plain", "steps=4"), tmp_path / "run", QUIET)
    del summary["stopped_early"]
    run = RunFolder.open(tmp_path / "run")
    run.write_json("summary.json", summary)
    assert "Training ended there" not in write_run_report(run).read_text()


def test_what_ended_early_is_not_prolonged(scripted: None, tmp_path: Path) -> None:
    trainer.train(tiny_training.config("method=plain", "evaluation.patience=2"), tmp_path / "run", QUIET)
    with pytest.raises(UserError, match=r"without evaluation\.patience"):
        RunFolder.prolong(tmp_path / "more", RunFolder.open(tmp_path / "run"), 40)
    base, columns = tiny_training.config("evaluation.patience=2"), ["plain", "ccp", "plain-time"]
    with pytest.raises(
        UserError, match=r"^--columns: 'plain' cannot be prolonged: .* evaluation\.patience, can$"
    ):
        compare.Experiment(tmp_path / "all", base, ["c2"], columns, [0])


def test_without_classes_held_out_there_is_nothing_to_go_by() -> None:
    with pytest.raises(
        UserError, match=r"^evaluation.patience: expected null under the protocol conventional, .*, got 5$"
    ):
        tiny_training.config("protocol.name=conventional", "evaluation.patience=5")


def test_a_checkpoint_from_before_there_was_an_early_end(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_training.config("method=plain"), {})
    splits = trainer.splits_of(run.config)
    one = trainer.Trainer(run, splits, QUIET)
    one.learner.step, one.best = 4, Best(4, 0.5, 3)
    one._save()
    saved = run.latest()
    assert saved is not None
    state: dict[str, Any] = {name: value for name, value in saved.state.items() if name != "stale"}
    one.restore(saved._replace(state=state))
    assert one.best == Best(4, 0.5, 0)
