"""Image files as input: what a network is shown, and files that are broken."""

from __future__ import annotations

import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import image_trees
import numpy as np
import pytest
import torch
from image_runs import COLOUR, config_of, followed, plan, training_images
from image_trees import picture
from PIL import Image
from rich.console import Console
from training_runs import QUIET, check_page
from typer.testing import CliRunner, Result

pytest.importorskip("safetensors")

from ccp_fast.cli.train_command import app
from ccp_fast.data import DataFileError, ImageFiles
from ccp_fast.data.image_files import decode
from ccp_fast.training import datasets, trainer
from ccp_fast.training.config import load_config, with_settings
from ccp_fast.training.display import Display
from ccp_fast.training.errors import UserError
from ccp_fast.training.inputs import NetworkInput, open_input, plain_batches
from ccp_fast.training.inputs.files import FilesInput
from ccp_fast.training.learner import Learner
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.monitor import Monitor
from ccp_fast.training.report import write_run_report
from ccp_fast.training.run_folder import RunFolder

GRAY = NetworkInput(channels=1, size=24, mean=(0.0,), std=(1.0,))
pytestmark = pytest.mark.usefixtures("torch_as_it_was")


# What a network is shown


def test_a_large_jpeg_is_decoded_as_small_as_it_may_be(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    picture(0, 0, (1000, 800)).save(path, quality=95)
    sizes = {least: decode(path, "RGB", least).size for least in (None, 801, 800, 401, 400, 101, 100, 1)}
    assert sizes == {
        None: (1000, 800), 801: (1000, 800), 800: (1000, 800), 401: (1000, 800), 400: (500, 400),
        101: (250, 200), 100: (125, 100), 1: (125, 100),
    }  # fmt: skip
    exact = decode(path, "RGB").resize((250, 200), Image.Resampling.BILINEAR)
    fast = decode(path, "RGB", 200).resize((250, 200), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(exact, float) - np.asarray(fast, float)).mean() < 4


def test_every_kind_of_picture_becomes_colour_or_gray(tmp_path: Path) -> None:
    for mode in ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        picture(0, 0).convert(mode).save(path)
        assert np.asarray(decode(path, "RGB")).shape == (36, 48, 3)
        assert np.asarray(decode(path, "L")).shape == (36, 48)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "big-endian.tif", "a.pgm"])
def test_sixteen_bits_keep_their_grays(tmp_path: Path, name: str) -> None:
    values = np.array([[0, 128, 129, 257], [32896, 40000, 65406, 65535]], np.uint16)
    Image.fromarray(values.astype(">u2") if "big" in name else values).save(tmp_path / name)
    gray = np.asarray(decode(tmp_path / name, "L"))
    assert gray.tolist() == [[0, 0, 1, 1], [128, 156, 254, 255]]  # of 257 each
    assert np.array_equal(np.asarray(decode(tmp_path / name, "RGB")), np.stack([gray] * 3, 2))


@pytest.mark.parametrize(("mode", "kind"), [("I", np.int32), ("F", np.float32)])
def test_values_of_no_known_range_are_told(tmp_path: Path, mode: str, kind: type) -> None:
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tif")
    said = f"image .*a.tif cannot be read: expected 8 or 16 bits a channel, got Pillow's mode {mode}, "
    with pytest.raises(DataFileError, match=said):
        decode(tmp_path / "a.tif", "RGB")


def test_evaluation_shows_the_middle(tree: Path) -> None:
    images, config = training_images(tree), config_of(tree)
    (shown,) = plain_batches(images, config, COLOUR)
    assert shown.shape == (24, 3, 24, 24)
    whole = decode(tree / images.paths[5], "RGB").resize((43, 32), Image.Resampling.BILINEAR)  # of 48 x 36
    middle = torch.tensor(np.asarray(whole)[4:28, 9:33] / 255.0).permute(2, 0, 1)
    for channel in range(3):
        expected = (middle[channel] - COLOUR.mean[channel]) / COLOUR.std[channel]
        torch.testing.assert_close(shown[5, channel].double(), expected, atol=1e-5, rtol=0)
    (gray,) = plain_batches(images, config, GRAY)
    assert gray.shape == (24, 1, 24, 24)
    assert gray.std() > 0.1


def test_a_crop_is_as_large_and_as_oblong_as_the_settings_say(tmp_path: Path) -> None:
    """A ramp in both directions tells which part of it is shown."""
    rows, columns = np.mgrid[0:256, 0:256].astype(np.uint8)
    Image.fromarray(np.stack([rows, columns, rows], 2)).save(tmp_path / "ramp.png")
    images = ImageFiles(tmp_path, ("ramp.png",) * 400, torch.zeros(400, dtype=torch.int64), ("a",))
    wanted = NetworkInput(channels=3, size=64, mean=(0.0,) * 3, std=(1 / 255,) * 3)
    shown = open_input(images, load_config(), wanted).augmented(
        0, range(400)
    )  # the defaults: 40 to 256, 3/4 to 4/3
    height = (shown[:, 0, -1, 32] - shown[:, 0, 0, 32]) * 64 / 63
    width = (shown[:, 1, 32, -1] - shown[:, 1, 32, 0]) * 64 / 63
    mirrored = width < 0
    assert 0.4 < mirrored.float().mean() < 0.6
    width = width.abs()
    side, aspect = (width * height).sqrt(), width / height
    assert side.min() > 36
    assert side.max() < 257
    assert (
        130 < side.mean() < 160
    )  # of 40 to 256 evenly: 148, less where 256 pixels are too few for the oblong ones
    assert 3 / 4 * 0.93 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 4 / 3 * 1.07
    top = shown[:, 0, 0, 32]
    small = side < 100
    assert top[small].min() < 20
    assert top[small].max() > 140


def test_without_changes_a_crop_is_the_image(tree: Path) -> None:
    images = training_images(tree)
    square = ["crop.shorter_side=24", "crop.least=24", "crop.aspect=1"]
    for mirror in (0, 1):
        config = config_of(tree, *square, f"crop.mirror={mirror}")
        shown = open_input(images, config, COLOUR).augmented(3, [4])[0]
        whole = decode(tree / images.paths[4], "RGB").resize((32, 24), Image.Resampling.BILINEAR)
        everywhere = torch.tensor(np.asarray(whole) / 255.0).permute(2, 0, 1).float()
        mean, std = (torch.tensor(v)[:, None, None] for v in (COLOUR.mean, COLOUR.std))
        whole_input = (everywhere - mean) / std
        if mirror:
            shown = shown.flip(2)
        # Somewhere along the longer side, between two pixels: at least as near to one place as bilinear weights say.
        distances = [(shown - whole_input[:, :, left : left + 24]).abs().mean() for left in range(9)]
        assert min(distances) < 0.35
        assert min(distances) < 0.6 * sum(distances) / 9


def test_settings_that_do_not_fit_the_network_are_told(tree: Path) -> None:
    images = training_images(tree)
    wide = NetworkInput(channels=3, size=33, mean=(0.0,) * 3, std=(1.0,) * 3)
    with pytest.raises(
        UserError, match=r"crop.shorter_side: expected at least 33, what the network is shown, got 32"
    ):
        open_input(images, config_of(tree), wide)
    with pytest.raises(UserError, match="expected a network of 1 or 3 channels for image files, got 2"):
        open_input(
            images, config_of(tree), NetworkInput(channels=2, size=24, mean=(0.0,) * 2, std=(1.0,) * 2)
        )
    with pytest.raises(UserError, match=r"crop\.least: expected at most shorter_side = 32, got 33"):
        config_of(tree, "crop.least=33")


def test_bytes_are_sent_to_the_device_and_become_float_there(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU is pretended: what is sent to it stays where it is."""
    images = training_images(tree)
    config = config_of(tree, "data.workers=1")
    here = FilesInput(images, config, COLOUR)
    expected = [here.augmented(0, plan(0)), *here.plain_batches(torch.arange(24), 20)]
    sent: list[tuple[str, torch.dtype, int, bool]] = []
    pinned: list[int] = []
    real = torch.Tensor.to

    def to(one: torch.Tensor, where: Any, *rest: Any, **named: Any) -> torch.Tensor:
        if not isinstance(where, torch.device) or where.type != "cuda":
            return real(one, where, *rest, **named)
        sent.append((str(where), one.dtype, len(one), one.data_ptr() in pinned and named["non_blocking"]))
        return one

    def pin_memory(one: torch.Tensor) -> torch.Tensor:
        copy = one.clone()
        pinned.append(copy.data_ptr())
        return copy

    statistics = torch.tensor
    monkeypatch.setattr(torch.Tensor, "to", to)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch, "tensor", lambda *rest, device=None, **named: statistics(*rest, **named))
    there = FilesInput(images, with_settings(config, compute__device="cuda:1"), COLOUR)
    shown = [there.augmented(0, plan(0)), *there.plain_batches(torch.arange(24), 20)]
    assert sent == [("cuda:1", torch.uint8, n, True) for n in (6, 20, 4)]
    assert all(torch.equal(a, b) for a, b in zip(shown, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_shown_the_same_bits(tree: Path) -> None:
    here, there = (followed(tree, f"compute.device={name}") for name in ("cpu", "cuda"))
    images = there.augmented(0, plan(0))
    assert images.device.type == "cuda"
    assert torch.equal(images.cpu(), here.augmented(0, plan(0)))


# Broken files


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ccp_fast"


def broken(tree: Path, copy: Path) -> list[Path]:
    """A copy with a JPEG cut in half, an empty file, text, and a class of which nothing is left."""
    image_trees.folders(copy)
    one = copy / "class 00" / "0.jpg"
    picture(0, 0, (200, 160)).save(one, quality=90)
    (copy / "class 00" / "0.png").unlink()
    one.write_bytes(one.read_bytes()[: one.stat().st_size // 2])
    others = [copy / "class 01" / "1.png", copy / "class 02" / "2.png"]
    others[0].write_bytes(b"")
    others[1].write_text("not a picture")
    gone = sorted((copy / "class 03").iterdir())
    for path in gone:
        path.write_bytes(path.read_bytes()[:60])
    return [one, *others, *gone]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_stops_a_run_and_is_named(tree: Path, tmp_path: Path, workers: int) -> None:
    paths = broken(tree, tmp_path / "tree")
    images = training_images(tmp_path / "tree")
    config = config_of(tmp_path / "tree", f"data.workers={workers}")
    for path in paths:
        sample = images.paths.index(path.relative_to(tmp_path / "tree").as_posix())
        opened = FilesInput(images, config, COLOUR)
        opened.follow(lambda _, sample=sample: [20, sample])  # type: ignore[misc]
        with pytest.raises(DataFileError, match=re.escape(f"image {path} cannot be read: ")) as error:
            opened.augmented(0, [20, sample])
        assert str(error.value).endswith("with --skip-broken where it embeds")
        assert "\n" not in str(error.value)
        with pytest.raises(DataFileError, match=re.escape(str(path))):
            images.image(sample)
    with pytest.raises(DataFileError, match="cannot be read"):
        list(plain_batches(images, config, COLOUR, batch_size=5))
    with pytest.raises(DataFileError, match="cannot be read"):
        trainer.train(config, tmp_path / "run", QUIET)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_left_out_if_that_is_wanted(
    tree: Path, tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    paths = broken(tree, tmp_path / "tree")
    config = config_of(tmp_path / "tree", "data.on_broken=skip", f"data.workers={workers}", "steps=4")
    with caplog.at_level(logging.WARNING):
        parts = datasets.load_parts(config.data)
    assert [record.getMessage().split(" cannot be read")[0] for record in caplog.records] == [
        f"image {path}" for path in paths
    ]
    assert parts.train.class_names == tuple(f"class {c:02d}" for c in (0, 1, 2, 4, 5))
    assert parts.train.labels.bincount().tolist() == [3, 3, 3, 4, 4]
    assert len(parts.test.query) == 24
    summary = trainer.train(config, tmp_path / "run", QUIET)
    assert summary["test"]["num_queries"] == 24


def test_files_that_were_decoded_before_are_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    root = image_trees.folders(tmp_path / "tree", classes=4, samples=2)
    config = config_of(root, "data.on_broken=skip").data
    tried: list[str] = []

    def counted(path: Path, *rest: Any, **named: Any) -> Image.Image:
        tried.append(path.relative_to(root).as_posix())
        return decode(path, *rest, **named)

    monkeypatch.setattr("ccp_fast.training.inputs.broken.decode", counted)

    def start() -> tuple[int, list[str]]:
        tried.clear()
        parts = datasets.load_parts(config)
        return len(parts.train) + len(parts.test.query), sorted(tried)

    everything = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.png"))
    assert start() == (8, everything)
    assert start() == (8, [])
    one, other = (root / name for name in ("class 01/0.png", "class 03/1.png"))
    one.write_bytes(one.read_bytes()[:-300])  # cut: another size
    os.utime(other, ns=(1, 1))  # written again at another time
    assert start() == (7, ["class 01/0.png", "class 03/1.png"])
    assert start() == (7, ["class 01/0.png"])  # a broken one is looked at each time, and told each time
    (remembered,) = own_cache.iterdir()
    for damage in (b"", b"[1, 2]", b'{"class 00/0.png": "x"}'):
        remembered.write_bytes(damage)
        assert start() == (7, everything)
    remembered.unlink()
    own_cache.rmdir()
    own_cache.write_text("no folder")  # nothing can be remembered: slower, and no error
    assert start() == start() == (7, everything)


# Runs


@pytest.mark.parametrize("method", ["ccp", "alternating"])
def test_classes_smaller_than_a_batch_or_a_pool_asks_for(tmp_path: Path, method: str) -> None:
    """A class of one image is repeated in a batch, is one candidate for K proxies, and asks nothing in evaluation."""
    tree = image_trees.folders(tmp_path / "tree", classes=10, samples=3)
    settings = ["data.workers=2", "steps=8", f"method={method}", "ccp.pool_size=7", "batch.samples=4"]
    config = config_of(tree, *settings, "evaluation.train_classes=3")
    whole = datasets.load_splits(config)
    for name in (whole.train.class_names[0], whole.test.query.class_names[0]):
        for sample in (1, 2):
            (tree / name / f"{sample}.png").unlink()
    splits = datasets.load_splits(config)
    assert splits.train.labels.bincount().tolist() == [1, 3, 3]
    learner = Learner(config, splits.train)
    batch = learner.data.batch(0, learner.method.sampler.batch(0))
    assert batch.labels.bincount().tolist() == [4, 4, 4]
    summary = trainer.train(config, tmp_path / "run", QUIET)
    assert summary["test"]["num_queries"] == 12  # of 13
    for path in tree.glob("class 0[56789]/[12].png"):
        path.unlink()
    with pytest.raises(
        UserError, match="expected test classes in which a query finds another image, got none: all 5"
    ):
        datasets.load_splits(config)


def test_classes_of_one_image_are_not_among_those_that_are_monitored(tmp_path: Path) -> None:
    tree = image_trees.folders(tmp_path / "tree", classes=10, samples=2)
    config = config_of(tree, "steps=4", "batch.classes=3", "evaluation.train_classes=2")
    first, *others = datasets.load_splits(config).train.class_names
    (tree / first / "1.png").unlink()
    splits = datasets.load_splits(config)
    assert splits.train.class_names == (first, *others)
    seen = Monitor(config, splits).seen
    assert seen is not None
    assert seen.query.class_names == tuple(others[:2])
    for name in others:
        (tree / name / "1.png").unlink()
    trainer.train(config, tmp_path / "run", QUIET)
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["train_map_at_r"] for row in rows] == [None]
    assert rows[0]["val_map_at_r"] is not None
    check_page(write_run_report(RunFolder.open(tmp_path / "run")).read_text())
    shown, text = Display(), io.StringIO()
    shown.console = Console(file=text, width=80)
    with shown.training(config, 0) as lines:
        lines.row(rows[0], is_best=True)
    assert re.search(r"\d\s+-\s+[01]\.\d{4}\s+[01]\.\d{4}\s", text.getvalue().splitlines()[-1])


def test_names_of_files_need_not_be_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives of other times have them in Latin-1."""
    monkeypatch.chdir(tmp_path)
    latin = os.fsdecode(b"caf\xe9")
    image_trees.folders(Path("tree"), classes=12, samples=3)
    try:
        for label in range(12):
            Path(f"tree/class {label:02d}").rename(f"tree/{label:02d} {latin}")
    except OSError:
        pytest.skip("needs a file system that takes any bytes for a name")
    Path(f"tree/01 {latin}/2.png").rename(f"tree/01 {latin}/{latin}.png")
    Path(f"tree/02 {latin}/broken {latin}.png").write_text("no image")
    config = config_of(tmp_path / "tree", "steps=4", "data.on_broken=skip")
    trainer.train(config, tmp_path / "run", QUIET)
    page = write_run_report(RunFolder.open(tmp_path / "run")).read_text(encoding="utf-8")
    check_page(page)
    assert r"07 caf\udce9/0.png" in page

    def embed(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["embed", "run", *arguments, "--out", f"{latin}.npy"])

    result = embed("tree", "--skip-broken")
    assert result.exit_code == 0, result.output
    assert r"caf\udce9.npy: 36 vectors of 8 dimensions" in result.stdout
    assert Path(f"{latin}.txt").read_bytes().splitlines()[5] == b"tree/01 caf\xe9/caf\xe9.png"
    assert embed(f"tree/02 {latin}").stderr.startswith(r"image tree/02 caf\udce9/broken caf\udce9.png cannot")
    Path("tree").rename(latin)
    with pytest.raises(UserError, match=r"^data.root: expected a path in UTF-8, .*, got '.*caf\\udce9'$"):
        datasets.load_splits(load_config(flags={"data.name": "folders", "data.root": tmp_path / latin}))


def test_photographs_are_shown_in_the_report(tree: Path, tmp_path: Path) -> None:
    trainer.train(config_of(tree, "steps=4"), tmp_path / "run", QUIET)
    text = write_run_report(RunFolder.open(tmp_path / "run")).read_text()
    page = check_page(text)
    assert page.tags.count("image") == 24
    assert text.count("data:image/jpeg;base64,") == 24 + (6 + 6) * (
        1 + 3
    )  # the map; queries and three others each
    assert "class 07: class 07/2.png" in text
