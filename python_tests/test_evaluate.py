"""`ccp-train evaluate`: the numbers of a run again, on other classes, at other steps, by faiss."""

from __future__ import annotations

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_training
from helpers import assert_same_state
from training_runs import QUIET, assert_same_results, check_page, tiny_data  # noqa: F401
from typer.testing import CliRunner, Result

pytest.importorskip("safetensors")

from ccp_fast.cli.train_command import app
from ccp_fast.evaluation import normalized_mutual_information
from ccp_fast.training import load_model, measure, protocols
from ccp_fast.training.errors import UserError
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.run_folder import RunFolder

SETTINGS = [part for setting in tiny_training.SETTINGS for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ccp_train(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_evaluate_gives_the_numbers_of_the_run_again(runs: Path) -> None:
    for name in ("plain", "ccp"):
        result = ccp_train("evaluate", str(runs / name), "--out", "a.json")
        assert result.exit_code == 0, result.output
        summary = RunFolder.open(runs / name).summary
        assert summary is not None
        assert json.loads(Path("a.json").read_text()) == summary["test"]
        assert f"glyphs, test: MAP@R {summary['test']['map_at_r']:.4f}" in result.stdout
        assert ("NMI" in result.stdout) == (name == "plain")


def test_evaluate_on_other_classes(runs: Path) -> None:
    file = str(runs / "plain" / "best.safetensors")
    result = ccp_train("evaluate", file, "--split", "val", "--set", "evaluation.nmi=false", "--out", "a.json")
    assert result.exit_code == 0, result.output
    assert "NMI" not in result.stdout
    summary = RunFolder.open(runs / "plain").summary
    assert summary is not None
    assert json.loads(Path("a.json").read_text())["map_at_r"] == summary["val"]["map_at_r"]
    seen = ccp_train("evaluate", file, "--split", "train")
    assert "glyphs, train: MAP@R" in seen.stdout
    assert "(72 queries)" in seen.stdout


def test_evaluate_at_a_step_that_was_kept(tmp_path: Path) -> None:
    config = tiny_training.config(
        "steps=12", "checkpoints.keep_every=4", "evaluation.nmi=false", "protocol.networks=2"
    )
    protocols.train(config, tmp_path / "run", QUIET)
    rows = read_rows(tmp_path / "run" / "network-1" / "metrics.jsonl")
    for row in rows:
        one = ["evaluate", "run/network-1", "--split", "val", "--step", str(row["step"]), "--out", "a.json"]
        assert ccp_train(*one).exit_code == 0
        assert json.loads(Path("a.json").read_text())["map_at_r"] == row["val_map_at_r"]
    assert [row["step"] for row in rows] == [4, 8, 12]
    together = load_model("run", step=8)
    for network, folder in zip(together.networks, RunFolder.open(Path("run")).networks(), strict=True):
        assert_same_state(network.state_dict(), load_model(folder, step=8).networks[0].state_dict())
    for arguments, sentence in (
        (["run", "--step", "5"], "step-00000005.safetensors cannot be read: No such file"),
        (
            ["run/network-0/best.safetensors", "--step", "4"],
            "step: expected the folder of a run, got run/network-0",
        ),
    ):
        result = ccp_train("evaluate", *arguments)
        assert result.exit_code == 2
        assert sentence in result.stderr
        assert result.stderr.count("\n") == 1


@pytest.mark.skipif(find_spec("faiss") is None, reason="pip install 'ccp-fast[faiss]'")
def test_faiss_searches_and_clusters_where_it_is_asked_to(
    runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str]] = []
    real = measure.retrieval

    def retrieval_seen(*arguments: Any, **options: Any) -> Any:
        asked.append((options["backend"], options["kmeans"]))
        return real(*arguments, **options)

    monkeypatch.setattr(measure, "retrieval", retrieval_seen)
    wanted = ["evaluation.backend=faiss", "evaluation.kmeans=faiss"]
    found = protocols.train(tiny_training.config("steps=8", "method=plain", *wanted), tmp_path / "run", QUIET)
    assert asked == [("faiss", "faiss")] * 5  # two evaluations of two kinds of classes, and the end
    before = RunFolder.open(runs / "plain").summary
    assert before is not None
    nmi = found["test"].pop("nmi")
    assert found["test"] == {name: value for name, value in before["test"].items() if name != "nmi"}
    images = tiny_training.images("test")
    vectors = load_model(tmp_path / "run").embed(images)
    assert nmi == normalized_mutual_information(vectors, images.labels, normalize=None, kmeans="faiss")
    asked.clear()
    settings = [part for setting in wanted for part in ("--set", setting)]
    result = ccp_train("evaluate", str(runs / "plain"), *settings)
    assert f"NMI {nmi:.4f}" in result.stdout
    assert asked == [("faiss", "faiss")]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["evaluation.backend=faiss"], "evaluation.backend: faiss is not installed: pip install "),
        (["evaluation.kmeans=faiss"], "evaluation.kmeans: faiss is not installed: pip install "),
        (
            ["evaluation.backend=faiss", "compute.device=cuda"],
            "evaluation.backend: expected ccp_fast with embeddings on a GPU, ",
        ),
    ],
)
def test_a_way_to_evaluate_that_is_not_there_is_told_before_a_folder_is_made(
    settings: list[str], sentence: str, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}"):
        protocols.train(tiny_training.config(*settings), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()
    if len(settings) == 1:
        result = ccp_train("evaluate", str(runs / "plain"), "--set", *settings)
        assert result.exit_code == 2
        assert result.stderr.startswith(sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "nowhere cannot be read"),
        (["{run}", "--data", "sopp"], "data.name: expected"),
        (["{run}", "--set", "data.nam=a"], "unknown key 'data.nam'; did you mean 'data.name'?"),
        (["{run}", "--device", "tpu"], "compute.device: expected"),
    ],
)
def test_evaluate_tells_what_is_wrong_in_a_sentence(arguments: list[str], sentence: str, runs: Path) -> None:
    result = ccp_train("evaluate", *(a.format(run=runs / "plain") for a in arguments))
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1


def test_options_of_training_do_not_belong_to_other_commands(runs: Path) -> None:
    result = ccp_train("--steps", "5", "evaluate", str(runs / "plain"))
    assert result.exit_code == 2
    assert result.stderr == "--steps: expected behind 'evaluate', or not with it\n"
