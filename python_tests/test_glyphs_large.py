"""``glyphs-large``: how it is built, from packages made here of fonts that Matplotlib brings, and how it is used."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import tiny_training
import torch
from training_runs import QUIET
from typer.testing import CliRunner

pytest.importorskip("safetensors")

from ccp_fast._system.lock import only_process
from ccp_fast.cli.data_command import app
from ccp_fast.data import DataFileError
from ccp_fast.data.drawing import Face, rank
from ccp_fast.data.glyphs_large import FILE_NAME, fonts, glyphs_large
from ccp_fast.data.glyphs_large import build as large
from ccp_fast.data.glyphs_large.faces import CHARACTERS, FACES
from ccp_fast.training import datasets, trainer
from ccp_fast.training.errors import UserError

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FILES = ["DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSerif-Bold", "STIXGeneral", "cmtt10"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
RECIPE = large.Recipe(
    faces=(
        *(Face(name, f"truetype/{name}.ttf", f"fonts-{i % 2}", "free") for i, name in enumerate(FILES)),
        Face("copy", "truetype/DejaVuSans-copy.ttf", "fonts-1", "free"),
    ),
    characters=(*LETTERS, " ", *"亜唖娃阿"),  # of which the fonts draw the letters
    smallest=4,
    largest=6,
)

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two packages with the fonts of `RECIPE`."""
    folder = tmp_path_factory.mktemp("packages")
    for package in ("fonts-0", "fonts-1"):
        content = folder / package
        (content / "DEBIAN").mkdir(parents=True)
        control = (
            f"Package: {package}\nVersion: 1.5-2\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"
        )
        (content / "DEBIAN" / "control").write_text(control)
        (content / "usr/share/fonts/truetype").mkdir(parents=True)
        (content / "usr/share/doc" / package).mkdir(parents=True)
        (content / "usr/share/doc" / package / "copyright").write_text(f"licence of {package}")
        for face in RECIPE.faces:
            if face.package == package:
                original = FONTS / Path(face.file).name.replace("-copy", "")
                shutil.copyfile(original, content / "usr/share/fonts" / face.file)
        command = [
            "dpkg-deb",
            "--root-owner-group",
            "-Znone",
            "--build",
            content,
            folder / f"{package}_1.5-2_all.deb",
        ]
        subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def built(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken build; not to be changed."""
    out = tmp_path_factory.mktemp("built") / "set"
    large.build(out, RECIPE, packages=packages, say=silent)
    return out


def silent(*_: Any) -> None:
    pass


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Building


@needs_dpkg
def test_classes_are_what_enough_faces_draw_differently(built: Path) -> None:
    images = glyphs_large(built, "all")
    assert set(images.class_names) == set(LETTERS)  # neither the blank nor the boxes of what no font has
    assert list(images.class_names) == sorted(LETTERS, key=rank)
    sizes = images.labels.bincount()
    assert set(sizes.tolist()) == {4, 5, 6}
    assert images.sources == (*FILES, "copy")
    for c in range(images.num_classes):
        rows = (images.labels == c).nonzero().squeeze(1)
        assert len(images.images[rows].flatten(1).unique(dim=0)) == len(rows)  # a copy counts once
        assert len(images.source_ids[rows].unique()) == len(rows)
    assert {"copy", "DejaVuSans"} <= {images.sources[i] for i in images.source_ids.tolist()}
    assert images.images.shape[1:] == (1, 32, 32)
    assert {int(v) % 17 for v in images.images.unique()} == {0}


@needs_dpkg
def test_nothing_but_the_set_is_left_and_notices_are_kept(built: Path) -> None:
    assert sorted(content(built)) == [
        FILE_NAME,
        "licenses/README.md",
        "licenses/fonts-0.txt",
        "licenses/fonts-1.txt",
    ]
    assert (built / "licenses" / "fonts-1.txt").read_text() == "licence of fonts-1"
    table = (built / "licenses" / "README.md").read_text()
    assert (
        "| STIXGeneral | `STIXGeneral.ttf` | fonts-0 | 1.5-2 | free | [fonts-0.txt](fonts-0.txt) |" in table
    )


@needs_dpkg
@pytest.mark.slow
def test_more_processes_build_the_same(
    built: Path, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "CHUNK", 10)
    large.build(tmp_path / "set", RECIPE, packages=packages, jobs=2, say=silent)
    assert content(tmp_path / "set") == content(built)


@needs_dpkg
def test_a_build_that_stops_anywhere_goes_on_and_leaves_no_half_set(
    built: Path, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    large.build(tmp_path / "count", RECIPE, packages=packages, say=lambda *stage: said.append(stage[0]))
    assert list(dict.fromkeys(said)) == ["fetching fonts", "drawing", "choosing", "compressing"]
    out, drawn = tmp_path / "set", []
    real = large._draw_chunk
    monkeypatch.setattr(
        large, "_draw_chunk", lambda face, *rest: drawn.append(face.name) or real(face, *rest)
    )
    stops = 0
    while not (out / FILE_NAME).exists():  # later at each attempt, until none is left to stop at
        stops += 1
        calls = iter(range(stops))

        def stop(*_: Any, calls: Any = calls) -> None:
            if next(calls, None) is None:
                raise KeyboardInterrupt

        try:
            large.build(out, RECIPE, packages=packages, say=stop)
        except KeyboardInterrupt:
            assert not (out / FILE_NAME).exists()
    assert stops > 5
    assert len(drawn) <= 2 * len(
        RECIPE.faces
    )  # a face that was stopped in the middle is drawn again, no other
    assert content(out) == content(built)
    drawn.clear()
    large.build(out, RECIPE, packages=packages, say=silent)  # it is there already
    assert not drawn


KILLED = """
import os, signal, sys
from pathlib import Path
from test_glyphs_large import RECIPE, large
calls = iter(range(int(sys.argv[3])))
def say(*_):
    if next(calls, None) is None:
        os.kill(os.getpid(), signal.SIGKILL)
large.build(Path(sys.argv[1]), RECIPE, packages=Path(sys.argv[2]), say=say)
"""


@needs_dpkg
@pytest.mark.slow
def test_a_killed_build_goes_on(built: Path, packages: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    for calls in (1, 9):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(out), str(packages), str(calls)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        assert not (out / FILE_NAME).exists()
    for file in (out / ".draft" / "faces").glob("*.npz"):
        file.write_bytes(file.read_bytes()[:-200])  # as if the disk had lost the end of it
    large.build(out, RECIPE, packages=packages, say=silent)
    assert content(out) == content(built)


@needs_dpkg
def test_a_full_disk_loses_nothing(
    built: Path, packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full while packages are unpacked, a face is drawn, notices are copied, and the set itself is written."""
    out, real = tmp_path / "set", os.fsync
    monkeypatch.setattr(large, "RECIPE", RECIPE)
    command = ["build", "glyphs-large", "--out", str(out), "--packages", str(packages), "--jobs", "1"]
    for place in ("/.draft/fonts/", "/.draft/faces/.STIX", "/licenses/", f"/.{FILE_NAME}"):

        def fsync(descriptor: int, place: str = place) -> None:
            if place in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            result = CliRunner().invoke(app, command)
        assert result.exit_code == 2, result.output
        said = result.stderr.splitlines()[-1]
        assert said.endswith("No space left on device; start the same command again to go on")
        if FILE_NAME in place:
            assert said.startswith(f"{out / FILE_NAME} cannot be written: ")
        assert not (out / FILE_NAME).exists()
    result = CliRunner().invoke(app, command)
    assert "26 classes, 4 to 6 each, in 7 typefaces" in result.stdout
    assert content(out) == content(built)


def test_a_damaged_draft_of_a_face_is_drawn_again(tmp_path: Path) -> None:
    """Wherever a byte is another one, or the file ends."""
    file = tmp_path / "face.npz"
    drawn = np.random.default_rng(0).integers(0, 16, (2, 8, 8)).astype(np.uint8)
    large._save(file, "key", drawn)
    whole = file.read_bytes()
    assert large._key_of(file) == "key"
    for at in range(0, len(whole), 3):
        file.write_bytes(whole[:at])
        assert large._key_of(file) is None
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        if large._key_of(file) is not None:  # a byte that the archive does not need
            assert np.array_equal(large._load(file), drawn)
    file.unlink()
    assert large._key_of(file) is None


@needs_dpkg
def test_two_builds_do_not_meet(packages: Path, tmp_path: Path) -> None:
    (tmp_path / ".draft").mkdir()
    with (
        only_process(tmp_path / ".draft", AssertionError()),
        pytest.raises(DataFileError, match="is being built by another process"),
    ):
        large.build(tmp_path, RECIPE, packages=packages, say=silent)


@needs_dpkg
def test_packages_that_cannot_be_had_are_named(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataFileError, match=r"--packages: expected one file fonts-x_\*\.deb in .*, got 0"):
        fonts.unpack("fonts-x", tmp_path / "fonts", packages)
    (tmp_path / "cut").mkdir()
    archive = (packages / "fonts-0_1.5-2_all.deb").read_bytes()
    (tmp_path / "cut" / "fonts-0_1.5-2_all.deb").write_bytes(archive[: len(archive) // 2])
    with pytest.raises(DataFileError, match="fonts-0: dpkg-deb failed: dpkg-deb: error"):
        fonts.unpack("fonts-0", tmp_path / "fonts", tmp_path / "cut")
    assert list((tmp_path / "fonts").iterdir()) == []
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    monkeypatch.setenv("PATH", str(bin_))
    with pytest.raises(DataFileError, match="fonts-0: apt-get was not found; the set is built on Debian"):
        fonts.unpack("fonts-0", tmp_path / "fonts", None)
    (bin_ / "apt-get").write_text("#!/bin/sh\necho 'E: Unable to locate package' $3 >&2\nexit 100\n")
    (bin_ / "apt-get").chmod(0o755)
    with pytest.raises(DataFileError, match="fonts-0: apt-get failed: E: Unable to locate package fonts-0"):
        fonts.unpack("fonts-0", tmp_path / "fonts", None)


@needs_dpkg
def test_apt_fetches_what_is_not_given(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    script = f'#!/bin/sh\n[ "$1" = download ] && cp {packages}/$3_*.deb .\n'
    (bin_ / "apt-get").write_text(script)
    (bin_ / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    found = fonts.unpack("fonts-0", tmp_path / "fonts", None)
    assert (found / "usr/share/fonts/truetype/DejaVuSans.ttf").is_file()
    assert (found / fonts.VERSION).read_text() == "1.5-2"


def test_the_recipe_of_the_set() -> None:
    assert len(FACES) == 20
    assert len({face.name for face in FACES}) == len({(face.file, face.index) for face in FACES}) == 20
    assert len(CHARACTERS) == 20_902
    with pytest.raises(
        DataFileError, match=r"fonts-seto: .*setofont.ttf cannot be used .* differ from those of"
    ):
        large._open(next(face for face in FACES if face.name == "seto"), Path("/nowhere"))


# Using it


@needs_dpkg
def test_halves_of_the_classes_are_disjoint_and_nothing_is_lost(built: Path) -> None:
    train, test, everything = (glyphs_large(built, split) for split in ("train", "test", "all"))
    assert train.class_names + test.class_names == everything.class_names
    assert train.num_classes == test.num_classes == 13
    assert torch.equal(torch.cat([train.images, test.images]), everything.images)
    assert torch.equal(test.labels + 13, everything.labels[len(train) :])
    with pytest.raises(ValueError, match="split: expected 'train', 'test' or 'all', got 'val'"):
        glyphs_large(built, "val")  # type: ignore[arg-type]


@needs_dpkg
def test_validation_classes_are_held_out_by_name(built: Path) -> None:
    config = tiny_training.config("data.name=glyphs-large", f"data.root={built}", "data.val_share=0.25")
    splits = datasets.load_splits(config)
    whole = glyphs_large(built, "train")
    assert (splits.train.num_classes, splits.val.num_classes) == (10, 3)
    assert set(splits.train.class_names) | set(splits.val.query.class_names) == set(whole.class_names)
    assert len(splits.train) + len(splits.val.query) == len(whole)
    fewer, held = datasets.hold_out(whole.of_classes(range(12)), 0.25)  # of other classes, the same order
    assert len(set(held.class_names) & set(splits.val.query.class_names)) >= 2
    assert fewer.num_classes == 9
    with pytest.raises(UserError, match=r"data.val_share: expected a share of 13 classes .* got 0.01"):
        datasets.load_splits(
            tiny_training.config("data.name=glyphs-large", f"data.root={built}", "data.val_share=0.01")
        )


@needs_dpkg
def test_held_out_typefaces_are_not_trained_on_and_are_searched_among_the_others(built: Path) -> None:
    held = ["data.name=glyphs-large", f"data.root={built}", "data.val_share=0.2", "data.held_out_typefaces=2"]
    splits = datasets.load_splits(tiny_training.config(*held))
    faces = [{s.sources[i] for i in s.source_ids.tolist()} for s in (splits.train, splits.val.query)]  # type: ignore[attr-defined]
    query, gallery = splits.test.query, splits.test.gallery
    unseen = {query.sources[i] for i in query.source_ids.tolist()}  # type: ignore[attr-defined]
    assert gallery is not None
    assert len(unseen) == 2
    assert not unseen & (faces[0] | faces[1] | {gallery.sources[i] for i in gallery.source_ids.tolist()})  # type: ignore[attr-defined]
    assert len(query) + len(gallery) == len(glyphs_large(built, "test"))
    assert splits.train.labels.bincount().min() > 0
    with pytest.raises(UserError, match="held_out_typefaces: expected fewer than 7, got 7"):
        datasets.load_splits(tiny_training.config(*held, "data.held_out_typefaces=7"))
    with pytest.raises(UserError, match="held_out_typefaces: expected 0 with the data set glyphs, got 1"):
        datasets.load_splits(tiny_training.config("data.held_out_typefaces=1"))


@needs_dpkg
def test_a_run_trains_on_it(built: Path, tmp_path: Path) -> None:
    settings = ["data.name=glyphs-large", f"data.root={built}", "data.val_share=0.2", "steps=8"]
    config = tiny_training.config(*settings, "ccp.pool_size=6")  # more than most classes have
    summary = trainer.train(config, tmp_path / "run", QUIET)
    assert summary["test"]["num_queries"] == len(glyphs_large(built, "test"))
    assert np.isfinite(summary["test"]["map_at_r"])


def test_a_set_that_is_not_there_is_told_with_the_command_that_makes_it(tmp_path: Path) -> None:
    config = tiny_training.config("data.name=glyphs-large", f"data.root={tmp_path}")
    with pytest.raises(
        DataFileError, match="does not exist; make it with: ccp-data build glyphs-large --out"
    ):
        datasets.load_splits(config)
    (tmp_path / FILE_NAME).write_bytes(b"CCPIMG1\n cut")
    with pytest.raises(
        DataFileError, match=r"is cut or damaged: .*; delete it and make it again with: ccp-data"
    ):
        datasets.load_splits(config)
    with pytest.raises(
        UserError, match=r"data.root: expected the folder of glyphs-large: give it with --data-root"
    ):
        datasets.load_splits(tiny_training.config("data.name=glyphs-large"))
