"""Runs as they are kept: retention, `--resume auto`, evaluate, reports over runs, loggers."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import image_trees
import numpy as np
import pytest
import tiny_training
import torch
from helpers import assert_same_state
from PIL import Image
from training_runs import QUIET, assert_same_results, check_page, tiny_data  # noqa: F401
from typer.testing import CliRunner, Result

pytest.importorskip("safetensors")

from ccp_fast.cli import report_command
from ccp_fast.cli.train_command import app
from ccp_fast.data import ImageFiles
from ccp_fast.evaluation import normalized_mutual_information, retrieval
from ccp_fast.training import load_model, measure, protocols
from ccp_fast.training.checkpoint import Checkpoint
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.config import with_settings
from ccp_fast.training.errors import UserError
from ccp_fast.training.export import export
from ccp_fast.training.inputs import plain_batches
from ccp_fast.training.interrupt import Interrupted
from ccp_fast.training.learner import Learner
from ccp_fast.training.loggers import LOGGERS, Loggers
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.report import run_report, write_run_report, write_runs_report
from ccp_fast.training.run_folder import RunFolder

SETTINGS = [part for setting in tiny_training.SETTINGS for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, `plain`, `ccp` and `deep/plain`; not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccp_fast.training.datasets.glyphs", tiny_training.images)
        protocols.train(tiny_training.config("steps=8", "method=plain"), folder / "plain", QUIET)
        protocols.train(tiny_training.config("steps=12", "evaluation.nmi=false"), folder / "ccp", QUIET)
        config = tiny_training.config("steps=8", "method=plain", "optimizer.lr=0.5")
        protocols.train(config, folder / "deep" / "plain", QUIET)
    return folder


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


# evaluate


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


# embed


def test_a_model_trained_on_glyphs_is_shown_whole_images(runs: Path) -> None:
    """Not 32 of 256 pixels; of files in the size of its own images it sees what it sees of those."""
    model, glyphs = load_model(runs / "ccp"), tiny_training.images("test").images[:3]
    files = [Path(f"{i}.png") for i in range(3)]
    for file, glyph in zip(files, glyphs, strict=True):
        Image.fromarray(glyph[0].numpy()).save(file)
    torch.testing.assert_close(model.prepare(files), model.input.fit(glyphs / 255))
    photograph = image_trees.picture(3, 0, (320, 256)).convert("L")
    whole = photograph.resize((40, 32), Image.Resampling.BILINEAR)
    assert torch.equal(model.prepare([photograph])[0, 0], torch.tensor(np.asarray(whole)[:, 4:36]) / 255)


@pytest.fixture(scope="module")
def products(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tree in the layout of SOP, and a run on it."""
    folder = tmp_path_factory.mktemp("products")
    root = image_trees.sop(folder / "sop", classes=12, samples=4)
    given = [f"data.root={root}", "data.name=sop", "data.counts=any", "data.workers=0", "data.val_share=0.3"]
    protocols.train(tiny_training.config("steps=8", *given), folder / "run", QUIET)
    return root, folder / "run"


def test_images_in_vectors_out(products: tuple[Path, Path]) -> None:
    root, run = products
    listed = [line.split() for line in (root / "Ebay_test.txt").read_text().splitlines()[1:]]
    paths = [str(root / row[3]) for row in listed]
    result = ccp_train("embed", str(run), *paths, "--out", "a.npy")
    assert result.exit_code == 0, result.output
    assert result.stdout == "a.npy: 24 vectors of 8 dimensions\n"
    vectors = np.load("a.npy", allow_pickle=False)
    assert vectors.dtype == np.float32
    assert Path("a.txt").read_text().splitlines() == paths
    labels = torch.tensor([int(row[1]) for row in listed])
    found = retrieval(torch.from_numpy(vectors), labels, metrics=("map_at_r",), normalize=None)
    summary = RunFolder.open(run).summary
    assert summary is not None
    assert found["map_at_r"] == pytest.approx(summary["test"]["map_at_r"], abs=1e-6)

    whole = ccp_train("embed", str(run / "best.safetensors"), str(root), paths[3], "--out", "b.npy")
    assert whole.stdout == "b.npy: 49 vectors of 8 dimensions\n"
    names = Path("b.txt").read_text().splitlines()
    assert names[:48] == sorted(names[:48])
    assert names[48] == paths[3]
    np.testing.assert_allclose(np.load("b.npy")[48], vectors[3], atol=1e-6)


def test_prepared_pictures_give_the_vectors_of_embed(products: tuple[Path, Path]) -> None:
    root, run = products
    paths = [Path("colour.png"), Path("gray.png"), Path("large.jpg"), *sorted(root.rglob("*.JPG"))[:3]]
    image_trees.picture(5, 0).save(paths[0])
    image_trees.picture(4, 0, (60, 50)).convert("L").save(paths[1])
    image_trees.picture(3, 0, (700, 530)).save(paths[2])  # which is decoded at a half
    assert ccp_train("embed", str(run), *map(str, paths), "--out", "a.npy").exit_code == 0
    model = load_model(run)
    expected = model.prepare(paths)
    files = ImageFiles(Path(), tuple(map(str, paths)), torch.zeros(len(paths), dtype=torch.int64), ("",))
    assert torch.equal(expected, *plain_batches(files, model.config, model.input))
    torch.testing.assert_close(model(expected), torch.from_numpy(np.load("a.npy")))
    assert torch.equal(model.prepare([str(path) for path in paths]), expected)
    opened = [Image.open(path) for path in paths]
    shown = model.prepare(opened)
    assert opened[2].size == (700, 530)
    assert torch.equal(shown[:2], expected[:2])
    assert 0 < (shown - expected).abs().max() < 0.1
    arrays = [np.asarray(one) for one in opened]
    assert torch.equal(model.prepare(arrays), shown)
    assert torch.equal(model.prepare(np.stack(arrays[3:])), shown[3:])
    assert model.prepare([]).shape == (0, 1, 32, 32)
    squeezed = model.input.fit(torch.tensor(arrays[0]).permute(2, 0, 1)[None] / 255)
    assert (squeezed - shown[:1]).abs().max() > 0.1


def test_a_model_is_where_it_was_loaded_not_where_it_was_trained(products: tuple[Path, Path]) -> None:
    root, run = products
    model = load_model(run)
    trained_there = with_settings(model.config, compute__device="cuda:1")
    export(Path("a.safetensors"), model.networks[0].state_dict(), trained_there, step=8)
    moved = load_model("a.safetensors")
    assert moved.config.compute.device == "cpu"
    path = next(root.rglob("*.JPG"))
    assert torch.equal(moved.prepare([path]), model.prepare([path]))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("a.jpg", "images: expected a list, each a path, a picture of Pillow or uint8 .*, got str by itself"),
        (np.zeros((9, 9, 3), np.uint8), r"images: expected a list, .*, got uint8 \[9, 9, 3\] by itself"),
        (
            [np.zeros((9, 9, 3))],
            r"images\[0\]: expected a path, .*\[height, width, 3\], got float64 \[9, 9, 3\]",
        ),
        ([np.zeros((9, 9, 4), np.uint8)], r"images\[0\]: expected a path, .*, got uint8 \[9, 9, 4\]"),
        ([np.zeros((0, 9), np.uint8)], r"images\[0\]: expected a path, .*, got uint8 \[0, 9\]"),
        ([torch.zeros(3, 9, 9, dtype=torch.uint8)], r"images\[0\]: expected a path, .*, got Tensor"),
        ([Image.new("F", (9, 9))], r"images\[0\]: expected 8 or 16 bits a channel, got Pillow's mode F"),
    ],
)
def test_what_is_no_picture_cannot_be_prepared(
    given: Any, sentence: str, products: tuple[Path, Path]
) -> None:
    model = load_model(products[1])
    with pytest.raises(ValueError, match=f"^{sentence}"):
        model.prepare(given)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (["nowhere.jpg"], "images: nowhere.jpg is neither a file nor a folder"),
        (["empty"], "images: expected .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp in empty, got none"),
        (["notes.txt"], "image notes.txt cannot be read: "),
        (["cut.jpg"], "image cut.jpg cannot be read: "),
    ],
)
def test_what_is_no_image_is_told_and_nothing_is_written(
    images: list[str], sentence: str, products: tuple[Path, Path]
) -> None:
    root, run = products
    Path("empty").mkdir()
    Path("notes.txt").write_text("no image")
    Path("cut.jpg").write_bytes(next(root.rglob("*.JPG")).read_bytes()[:200])
    result = ccp_train("embed", str(run), *images, "--out", "a.npy")
    assert result.exit_code == 2
    assert result.stderr.startswith(sentence)
    assert result.stderr.count("\n") == 1
    assert not list(Path().glob("a.*"))


@pytest.mark.parametrize(
    ("command", "out", "sentence"),
    [
        (
            "embed",
            "v.txt",
            "--out: expected a file such as vectors.npy, got v.txt, where the paths of the rows go",
        ),
        ("embed", "nodir/v.npy", "nodir/v.npy cannot be written: No such file or directory"),
        ("embed", "taken", "taken cannot be written: Is a directory"),
        ("embed", "listed.npy", "listed.txt cannot be written: Is a directory"),
        ("embed", "full/v.npy", "full/v.npy cannot be written: No space left on device"),
        ("evaluate", "nodir/m.json", "nodir/m.json cannot be written: No such file or directory"),
        ("evaluate", "taken", "taken cannot be written: Is a directory"),
    ],
)
def test_what_cannot_be_written_is_told_before_anything_is_computed(
    command: str, out: str, sentence: str, products: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = products
    for folder in ("taken", "listed.txt", "full"):
        Path(folder).mkdir()
    real = tempfile.mkstemp

    def mkstemp(*rest: Any, dir: Path, **named: Any) -> tuple[int, str]:
        if Path(dir).name == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*rest, dir=dir, **named)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    monkeypatch.setattr(f"ccp_fast.cli.{command}_command.load_model", None)
    result = ccp_train(command, str(run), *([str(root)] if command == "embed" else []), "--out", out)
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", sentence + "\n")
    assert sorted(str(path) for path in Path().rglob("*")) == ["full", "listed.txt", "taken"]


def test_a_folder_that_nobody_may_look_into_is_told(
    products: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def scandir(path: str) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path)

    Path("deep/closed").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    result = ccp_train("embed", str(products[1]), "deep")
    assert (result.exit_code, result.stderr) == (2, "images: deep/closed cannot be read: Permission denied\n")


def test_broken_images_are_left_out_of_the_vectors_if_that_is_wanted(
    products: tuple[Path, Path], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path("cache").resolve()))
    root, run = products
    whole = [str(path) for path in sorted(root.rglob("*.JPG"))[:3]]
    Path("cut.jpg").write_bytes(Path(whole[0]).read_bytes()[:200])
    given = [whole[0], "cut.jpg", *whole[1:]]
    assert "with --skip-broken where it embeds" in ccp_train("embed", str(run), *given).stderr
    result = ccp_train("embed", str(run), *given, "--skip-broken", "--out", "a.npy")
    assert (result.exit_code, result.stdout) == (0, "a.npy: 3 vectors of 8 dimensions\n"), result.output
    assert [record.getMessage()[:28] for record in caplog.records] == ["image cut.jpg cannot be read"]
    assert Path("a.txt").read_text().splitlines() == whole
    ccp_train("embed", str(run), *whole, "--out", "b.npy")
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
    result = ccp_train("embed", str(run), "cut.jpg", "--skip-broken", "--out", "c.npy")
    assert result.stderr.endswith("images: expected some that can be decoded, got none of 1\n")
    assert not Path("c.npy").exists()


def test_recall_is_given_as_publications_do(products: tuple[Path, Path]) -> None:
    summary = RunFolder.open(products[1]).summary
    assert summary is not None
    recalls = [name for name in summary["test"] if name.startswith("recall_at_")]
    assert recalls == ["recall_at_1", "recall_at_10", "recall_at_100", "recall_at_1000"]
    result = ccp_train("evaluate", str(products[1]), "--set", "evaluation.nmi=false")
    assert "R@1000 1.0000" in result.stdout


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


# Loggers


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
