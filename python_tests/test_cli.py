from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from typer.testing import CliRunner, Result

from ccp_fast.cli import train
from ccp_fast.cli.train_command import app
from ccp_fast.training import datasets
from ccp_fast.training.run_folder import RunFolder

SETTINGS = [part for setting in tiny_training.SETTINGS for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "glyphs", tiny_training.images)
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


def ccp_train(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_run_shows_a_table_makes_a_numbered_folder_and_a_report() -> None:
    result = ccp_train(*SETTINGS, "--steps", "8", "--loss", "ms", "--method", "plain", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert "Multi-Similarity: 8 steps of 4x2 images" in result.stdout
    assert "MAP@R seen" in result.stdout
    assert "unseen classes: MAP@R 0." in result.stdout
    assert "report: runs/glyphs-multi_similarity-plain-001/report.html" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if "   plain   " in line) <= 80
    run = RunFolder.open(Path("runs/glyphs-multi_similarity-plain-001"))
    assert (run.config.steps, run.config.loss.name, run.config.seed) == (8, "multi_similarity", 5)
    assert (run.path / "report.html").is_file()

    again = ccp_train("--resume", str(run.path))  # finished: tells the numbers again
    assert again.exit_code == 0
    assert next(line for line in again.stdout.splitlines() if "unseen" in line) in result.stdout
    (run.path / "report.html").unlink()
    assert ccp_train("--report", str(run.path)).exit_code == 0
    assert (run.path / "report.html").is_file()


def test_the_settings_of_a_run_are_printed_as_a_file_that_can_be_read() -> None:
    shown = ccp_train("--show-config", "--loss", "triplet", "--set", "batch.classes=32")
    Path("a.yaml").write_text(shown.stdout)
    again = ccp_train("--show-config", "--config", "a.yaml")
    assert again.stdout == shown.stdout
    assert "  name: triplet\n" in again.stdout
    assert "  classes: 32  # Classes in a batch.\n  samples: 4  # Images of each of them.\n" in again.stdout
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--loss", "c22"], "loss.name: expected 'c1', 'c2', 'triplet'"),
        (["--loss", "c22"], "got 'c22'; did you mean 'c2'?"),
        (
            ["--method", "cpp"],
            "method: expected 'plain', 'ccp', 'alternating', 'intra-batch' or 'xbm', got 'cpp'",
        ),
        (["--set", "ccp.lambda=1"], "unknown key 'ccp.lambda'; did you mean 'ccp.lam'?"),
        (["--config", "nowhere.yaml"], "config file nowhere.yaml cannot be read: No such file or directory"),
        (["--config", "."], "config file . cannot be read: Is a directory"),
        (["--resume", "nowhere"], "nowhere is not a run folder"),
        (["--resume", "nowhere", "--steps", "5"], "--resume: a run goes on with the settings it has"),
        (["--report", "nowhere"], "nowhere is not a run folder"),
        (["--losses", "c1"], "--losses: expected beside --compare; did you mean --loss?"),
        (["--seeds", "0,1"], "--seeds: expected beside --compare; did you mean --seed?"),
        (["--columns", "ccp", *SETTINGS], "--columns: expected beside --compare"),
        (["--jobs", "1"], "--jobs: expected beside --compare"),
        (["--compare", "--seed", "1"], "--seed: expected without --compare, which takes --seeds"),
        (["--compare", "--method", "ccp"], "--method: expected without --compare, which takes --columns"),
        (["--compare", "--resume", "auto"], "--resume: expected without --compare, which goes on by itself"),
        (["--compare", "--losses", "c1", "--loss", "c2"], "--loss: expected without --losses"),
        (["--report", "nowhere", "--set", "steps=1"], "--set: expected without --report"),
        (["--report", "nowhere", "--compare"], "--compare: expected without --report"),
        (["--report", "nowhere", "--resume", "nowhere"], "--resume: expected without --report"),
        (["--resume", "nowhere", "--jobs", "2"], "beside it give at most --data-root, or --set with"),
        (["--resume", "nowhere", "--show-config"], "beside it give at most --data-root, or --set with"),
        (
            ["--out", "taken", *SETTINGS],
            "taken exists already: choose another folder, or go on with --resume taken",
        ),
        (["--out", "taken/file/run", *SETTINGS], "taken/file/run cannot be made: "),
        (["--compare", "--losses", "c1,tripl"], "--losses: expected some of c1, c2, triplet"),
        (["--compare", "--columns", "plain,cpp"], "got 'cpp'; did you mean 'ccp'?"),
        (["--compare", "--seeds", "a"], "--seeds: expected whole numbers such as 0,1,2, got 'a'"),
        (
            ["--set", "batch.classes=900"],
            "batch.classes: expected at most 12, the number of classes, got 900",
        ),
    ],
)
def test_wrong_input_is_told_in_one_sentence(arguments: list[str], sentence: str) -> None:
    Path("taken").mkdir()
    Path("taken/file").write_text("mine")
    result = ccp_train(*arguments)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    assert sorted(str(p) for p in Path().rglob("*")) == ["taken", "taken/file"]
    assert Path("taken/file").read_text() == "mine"


@pytest.mark.parametrize("content", [None, b"", b"not a data file"])
def test_a_missing_or_damaged_data_file_is_told_in_one_sentence(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "glyphs.bin"
    if content is not None:
        file.write_bytes(content)
    module = sys.modules["ccp_fast.data.glyphs"]  # as an attribute it is the function of the same name
    monkeypatch.setattr(module, "FILE", file)
    monkeypatch.setattr(datasets, "glyphs", module.glyphs)
    result = ccp_train("--steps", "1")
    assert result.exit_code == 2
    assert str(file) in result.stderr
    assert result.stderr.count("\n") == 1
    assert not Path("runs").exists()


def test_a_run_with_damaged_checkpoints_only_is_told_in_one_sentence() -> None:
    run = RunFolder.create(Path("run"), tiny_training.config(), {})
    for step in (4, 8):
        (run.path / "checkpoints" / f"step-{step:08d}.safetensors").write_bytes(b"cut")
    result = ccp_train("--resume", "run")
    assert result.exit_code == 2
    assert "none of the 2 checkpoints in run/checkpoints can be read: all are damaged" in result.stderr


def test_a_comparison_prints_its_table() -> None:
    started: list[Path] = []

    def run_here(config: Any, path: Path) -> None:
        from ccp_fast.training import trainer
        from ccp_fast.training.display import Display

        started.append(path)
        trainer.train(config, path, Display(quiet=True))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccp_fast.training.compare.run_in_a_process", run_here)
        arguments = [*SETTINGS, "--steps", "4", "--compare", "--losses", "c2", "--seeds", "1", "--out", "all"]
        result = ccp_train(*arguments)
        assert result.exit_code == 0, result.output
        assert "| C2 (Euclidean contrastive) | 0." in result.stdout
        assert "report: all/report.html" in result.stdout
        assert len(started) == 2
        assert ccp_train(*arguments).exit_code == 0
        assert len(started) == 2  # both finished


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without_typer(name: str, *rest: Any) -> Any:
        if name == "typer":
            raise ModuleNotFoundError("No module named 'typer'", name="typer")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "ccp_fast.cli.train_command")
    monkeypatch.setattr(builtins, "__import__", without_typer)
    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "ccp-train needs typer: pip install 'ccp-fast[train]'\n"
