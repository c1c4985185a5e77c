"""TensorBoard and Weights & Biases beside a run: what they get, and that they cannot end it."""

from __future__ import annotations

import logging
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tiny_training
from training_runs import QUIET, assert_same_results, check_page, tiny_data  # noqa: F401

pytest.importorskip("safetensors")

from ccp_fast.training import protocols
from ccp_fast.training.errors import UserError
from ccp_fast.training.loggers import LOGGERS, Loggers
from ccp_fast.training.run_folder import RunFolder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Recorder:
    rows: list[tuple[str, dict[str, Any]]]

    def __init__(self, *_: Any) -> None:
        self.rows, self.closed = [], False

    def write(self, row: Any, group: str) -> None:
        self.rows.append((group, dict(row)))

    def close(self) -> None:
        self.closed = True


class Broken(Recorder):
    def write(self, row: Any, group: str) -> None:
        raise ConnectionError("no route to host")


def test_a_logger_that_fails_is_left_out_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Recorder] = []

    def recorder(*arguments: Any) -> Recorder:
        made.append(Recorder(*arguments))
        return made[-1]

    (tmp_path / "wandb.py").touch()  # as if it were installed
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(LOGGERS, "wandb", Broken)
    monkeypatch.setitem(LOGGERS, "tensorboard", recorder)
    with caplog.at_level(logging.WARNING):
        protocols.train(tiny_training.config("loggers=[wandb, tensorboard]"), tmp_path / "run", QUIET)
    assert caplog.text.count("logger wandb is left out from here on: no route to host") == 1
    (seen,) = made
    assert seen.closed
    groups = [group for group, _ in seen.rows]
    assert (groups.count("evaluation"), groups.count("subproblem")) == (6, 4)
    assert [row["step"] for group, row in seen.rows if group == "evaluation"] == [4, 8, 12, 16, 20, 24]


def test_no_logger_at_all(tmp_path: Path) -> None:
    protocols.train(tiny_training.config("loggers=[]", "steps=4"), tmp_path / "run", QUIET)
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.fixture
def wandb_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What a module in place of wandb is asked: the real one is tried by hand, it is large."""
    calls: list[tuple[str, Any]] = []
    run = types.SimpleNamespace(
        define_metric=lambda *a, **k: calls.append(("define_metric", (a, k))),
        log=lambda row: calls.append(("log", row)),
        finish=lambda: calls.append(("finish", None)),
    )
    module = types.ModuleType("wandb")
    module.init = lambda **options: calls.append(("init", options)) or run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return calls


def test_weights_and_biases_gets_what_it_asks_for(wandb_calls: list[tuple[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "a-001").mkdir()
    loggers = Loggers(tmp_path / "a-001", tiny_training.config("loggers=[wandb]"), 1)
    loggers.write({"step": 4, "loss": 0.5, "note": None}, "evaluation")
    loggers.close()
    name, options = wandb_calls[0]
    assert (name, options["mode"], options["name"], options["resume"]) == (
        "init",
        "offline",
        "a-001",
        "allow",
    )
    assert options["group"] is None
    assert options["config"]["steps"] == 24
    assert wandb_calls[2:] == [("log", {"evaluation/loss": 0.5, "step": 4}), ("finish", None)]


def test_weights_and_biases_tells_runs_of_one_name_apart_and_knows_one_again(
    wandb_calls: list[tuple[str, Any]], tmp_path: Path
) -> None:
    config = tiny_training.config("loggers=[wandb]", "protocol.networks=2", "protocol.network=0")
    folders = [tmp_path / whole / "network-0" for whole in ("a", "b")]
    for folder in [*folders, folders[0]]:  # the first goes on
        folder.mkdir(parents=True, exist_ok=True)
        Loggers(folder, config, 1).close()
    options = [given for name, given in wandb_calls if name == "init"]
    assert [o["name"] for o in options] == ["a/network-0", "b/network-0", "a/network-0"]
    assert [o["group"] for o in options] == ["a", "b", "a"]
    ids = [o["id"] for o in options]
    assert ids[0] == ids[2] != ids[1]
    assert all(re.fullmatch("[0-9a-f]{16}", one) for one in ids)


def test_without_wandb_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"loggers: wandb is not installed: pip install 'ccp-fast\[wandb\]'"):
        protocols.train(tiny_training.config("loggers=[wandb]"), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


def test_a_logger_that_cannot_begin_is_left_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_training.config("steps=4"), {})
    (run.path / "tensorboard").write_text("in its way")
    with caplog.at_level(logging.WARNING):
        protocols.resume(run.path, QUIET)
    assert "logger tensorboard is left out from here on: " in caplog.text
    assert run.summary is not None
