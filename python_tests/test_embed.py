"""`ccp-train embed` and `EmbeddingModel.prepare`: images in, vectors out."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import image_trees
import numpy as np
import pytest
import tiny_training
import torch
from PIL import Image
from training_runs import QUIET, assert_same_results, check_page, tiny_data  # noqa: F401
from typer.testing import CliRunner, Result

pytest.importorskip("safetensors")

from ccp_fast.cli.train_command import app
from ccp_fast.data import ImageFiles
from ccp_fast.evaluation import retrieval
from ccp_fast.training import load_model, protocols
from ccp_fast.training.config import with_settings
from ccp_fast.training.export import export
from ccp_fast.training.inputs import plain_batches
from ccp_fast.training.run_folder import RunFolder


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def ccp_train(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


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
