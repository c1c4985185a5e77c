"""A run goes on on another machine: its data lie elsewhere, but are the same, and it computes as that machine can."""

from __future__ import annotations

import shutil
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import image_trees
import pytest
import tiny_training
import torch
from training_runs import QUIET, assert_same_results, tiny_data, without_times  # noqa: F401
from typer.testing import CliRunner, Result

pytest.importorskip("safetensors")

from ccp_fast.cli import train_command
from ccp_fast.cli.train_command import app
from ccp_fast.data import EvaluationSet, ImageFiles, ImageSource, Splits
from ccp_fast.training import compare, protocols
from ccp_fast.training.config import to_yaml, with_settings
from ccp_fast.training.errors import UserError
from ccp_fast.training.fingerprint import fingerprint
from ccp_fast.training.folds import splits_of
from ccp_fast.training.learner import Learner
from ccp_fast.training.run_folder import RunFolder

PRODUCTS = ["data.name=sop", "data.counts=any", "data.workers=0", "data.val_share=0.3", "steps=8"]
PRODUCTS += ["evaluation.nmi=false", "model.name=glyph-cnn", "crop.shorter_side=32", "crop.least=12"]
SETTINGS = [part for setting in [*tiny_training.SETTINGS, *PRODUCTS] for part in ("--set", setting)]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def reported(run: RunFolder, tested: object = None) -> Path:
        """Instead of the page, which takes its time: what it needs of the data is there."""
        splits_of(run.config)
        return run.path

    monkeypatch.setattr(train_command, "write_run_report", reported)


@pytest.fixture
def root() -> Path:
    return image_trees.sop(Path("data").resolve(), classes=12, samples=4)


def ccp_train(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["--quiet", *arguments])


def crashing(call: Callable[[], Any]) -> None:
    """In the middle, behind the first evaluation."""
    step = Learner.train_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "train_step", lambda one: step(one) if one.step < 6 else 1 / 0)
        try:
            result = call()
        except ZeroDivisionError:
            return
        assert isinstance(result.exception, ZeroDivisionError)


def move(root: Path) -> Path:
    return root.rename(root.with_name("elsewhere"))


@pytest.mark.parametrize("way", ["by its folder", "by the same command"])
def test_a_run_goes_on_where_its_data_lie_now(way: str, root: Path) -> None:
    start = [*SETTINGS, "--data-root", str(root), "--out"]
    assert ccp_train(*start, "unbroken").exit_code == 0
    crashing(lambda: ccp_train(*start, "broken"))
    elsewhere = move(root)
    fewer = ["--set", "loggers=[]", "--set", "data.workers=1"]
    if way == "by its folder":
        result = ccp_train("--resume", "broken", "--data-root", "elsewhere", *fewer)
    else:
        command = [*SETTINGS, "--data-root", "elsewhere", *fewer]
        result = ccp_train(*command, "--resume", "auto", "--out", "broken")
    assert result.exit_code == 0, result.output
    assert_same_results(Path("unbroken"), Path("broken"))
    config = RunFolder.open(Path("broken")).config
    assert (config.data.root, config.data.workers, config.loggers) == (elsewhere, 1, ())
    assert ccp_train("--report", "broken").exit_code == 0  # finds them too
    assert ccp_train("--report", "unbroken").exit_code == 2
    assert ccp_train("--resume", "unbroken", "--data-root", "elsewhere").exit_code == 0
    assert ccp_train("--report", "unbroken").exit_code == 0


def test_a_run_begun_on_a_gpu_goes_on_without_one(tmp_path: Path) -> None:
    config = tiny_training.config("steps=8")
    crashing(lambda: protocols.train(config, tmp_path / "run", QUIET))
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(with_settings(config, compute__device="cuda")))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"compute\.device: expected cpu where there is no GPU"):
            protocols.resume(tmp_path / "run", QUIET)
    result = ccp_train("--resume", "run", "--set", "compute.device=cpu")
    assert result.exit_code == 0, result.output
    protocols.train(config, tmp_path / "unbroken", QUIET)
    assert_same_results(tmp_path / "unbroken", tmp_path / "run")


@pytest.mark.parametrize(
    "given",
    [["--set", "steps=9"], ["--set", "threads=3"], ["--threads", "3"], ["--loss", "c1"], ["--out", "a"]],
    ids=" ".join,
)
def test_what_a_run_is_stays_as_it_is(given: list[str], tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", tiny_training.config(), {})
    result = ccp_train("--resume", "run", *given)
    assert result.exit_code == 2
    assert result.stderr == (
        "--resume: a run goes on with the settings it has; beside it give at most --data-root, or --set with "
        "data.root, data.workers, compute.device, loggers\n"
    )


def test_a_run_that_another_process_writes_is_not_moved(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_training.config(), {})
    before = (run.path / "config.yaml").read_text()
    with run.lock():
        result = ccp_train("--resume", "run", "--set", "loggers=[]")
    assert "is being written by another process" in result.stderr
    assert (run.path / "config.yaml").read_text() == before


def test_all_networks_of_a_protocol_move(root: Path) -> None:
    start = [*SETTINGS, "--set", "protocol.name=reality-check", "--set", "protocol.networks=2"]
    start += ["--set", "batch.classes=2", "--resume", "auto"]
    assert ccp_train(*start, "--data-root", str(root), "--out", "unbroken").exit_code == 0
    crashing(lambda: ccp_train(*start, "--data-root", str(root), "--out", "broken"))
    move(root)
    result = ccp_train(*start, "--data-root", "elsewhere", "--out", "broken")
    assert result.exit_code == 0, result.output
    summaries = [RunFolder.open(Path(name)).summary for name in ("unbroken", "broken")]
    assert without_times(summaries[0]) == without_times(summaries[1])


def test_cells_of_a_comparison_move(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def invoked(command: list[str], **_: Any) -> Any:
        result = CliRunner().invoke(app, command[3:])
        if isinstance(result.exception, ZeroDivisionError):
            raise result.exception
        return type("Done", (), {"returncode": result.exit_code, "stderr": result.stderr})

    monkeypatch.setattr(compare, "subprocess", types.SimpleNamespace(run=invoked, DEVNULL=None, PIPE=None))

    def experiment(where: Path) -> compare.Experiment:
        base = tiny_training.config(*PRODUCTS, f"data.root={where}")
        return compare.Experiment(Path("all"), base, ["c2"], ["plain", "ccp", "plain-time"], [0])

    crashing(lambda: experiment(root).run(compare.run_in_a_process, 1, lambda _: None))
    elsewhere = move(root)
    experiment(elsewhere).run(compare.run_in_a_process, 1, lambda _: None)
    assert len(experiment(elsewhere).rows()) == 3


# Other data


def rename_one(root: Path) -> None:
    """One image for another of its class."""
    text = (root / "Ebay_train.txt").read_text()
    one = text.splitlines()[1].split()[3]
    (root / one).rename(root / one.replace("_0.", "_9."))
    (root / "Ebay_train.txt").write_text(text.replace(one, one.replace("_0.", "_9.")))


def leave_one_out(root: Path) -> None:
    lines = (root / "Ebay_test.txt").read_text().splitlines()
    (root / "Ebay_test.txt").write_text("\n".join(lines[:-1]) + "\n")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            rename_one,
            "16 images of 4 classes, val 8 images of 2 classes, test 24 images of 6 classes then, as many now",
        ),
        (leave_one_out, "test 24 images of 6 classes then, train .* test 23 images of 6 classes now"),
    ],
)
def test_a_run_does_not_go_on_with_other_data(
    change: Callable[[Path], None], sentence: str, root: Path
) -> None:
    crashing(lambda: ccp_train(*SETTINGS, "--data-root", str(root), "--out", "run"))
    change(root)
    with pytest.raises(UserError, match=rf"^run began with other data \(train .*{sentence}.*--data-root$"):
        protocols.resume(Path("run"), QUIET)
    (Path("run") / "data.json").unlink()  # as runs were before
    assert protocols.resume(Path("run"), QUIET)["steps"] == 8


def test_without_a_folder_only_a_run_on_the_same_root_is_gone_on_with(root: Path) -> None:
    command = [*SETTINGS, "--resume", "auto"]
    crashing(lambda: ccp_train(*command, "--data-root", str(root)))
    other = shutil.copytree(root, "other")
    rename_one(Path(other))
    assert ccp_train(*command, "--data-root", str(other)).exit_code == 0
    assert ccp_train(*command, "--data-root", str(root), "--set", "loggers=[]").exit_code == 0
    done = {path.name: RunFolder.open(path).config.data.root for path in Path("runs").glob("*-00*")}
    assert done == {"sop-c2-ccp-001": root, "sop-c2-ccp-002": Path(other).resolve()}
    assert all((Path("runs") / name / "summary.json").exists() for name in done)


def test_a_fingerprint_is_of_all_that_tells_images_apart() -> None:
    files = ImageFiles(Path("a"), ("one.jpg", "two.jpg"), torch.tensor([0, 1]), ("x", "y"))
    memory = tiny_training.images("val")
    sets: list[ImageSource] = [
        files,
        replace(files, paths=("two.jpg", "one.jpg")),
        replace(files, labels=torch.tensor([1, 0])),
        replace(files, class_names=("x", "z")),
        memory,
        replace(memory, images=memory.images.flip(3)),
        replace(memory, sources=("one", "three")),
        replace(memory, source_ids=1 - memory.source_ids),
    ]
    test = EvaluationSet(tiny_training.images("test"))
    found = [fingerprint(Splits(one, None, test)) for one in sets]
    found += [fingerprint(Splits(test.query, EvaluationSet(one), test)) for one in sets]
    found += [fingerprint(Splits(test.query, None, EvaluationSet(test.query, test.query)))]
    assert len({one["sha256"] for one in found}) == 17
    assert fingerprint(Splits(replace(files, root=Path("b")), None, test)) == found[0]
    assert list(found[-1]["splits"]) == ["train", "test", "test gallery"]
    odd = replace(files, paths=("one.jpg", "two\udcff.jpg"))  # a name that is not UTF-8
    assert fingerprint(Splits(odd, None, test)) != found[0]
