"""`ccp-data`: what it prints and how it ends."""

from __future__ import annotations

import builtins
import os
import sys
from pathlib import Path
from typing import Any

import image_trees
import pytest
import yaml
from typer.testing import CliRunner, Result

pytest.importorskip("safetensors")

from ccp_fast.cli import data
from ccp_fast.cli.data_command import app
from ccp_fast.cli.train_command import app as ccp_train


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ccp_data(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_set_is_counted(tmp_path: Path) -> None:
    image_trees.inshop(tmp_path)
    result = ccp_data(
        "check", "inshop", "--data-root", str(tmp_path), "--counts", "any", "--images", "--workers", "0"
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "training classes: 3", "training images: 9", "test classes: 3", "query images: 3", "gallery images: 6",
    ]  # fmt: skip
    assert ccp_data("check", "glyphs").stdout.splitlines()[0] == "training classes: 800"


def test_what_is_wrong_with_a_set_is_one_sentence(tmp_path: Path) -> None:
    image_trees.sop(tmp_path)
    for arguments, sentence in [
        (["sop"], "data.root: expected the folder of sop: give it with --data-root"),
        (["sop", "--data-root", str(tmp_path)], "SOP: expected 11,318 training classes, got 3 in"),
        (["sop", "--counts", "all"], "data.counts: expected 'published' or 'any', got 'all'"),
        (["sob"], "data.name: expected 'glyphs', 'glyphs-large', 'sop',"),
    ]:
        result = ccp_data("check", *arguments)
        assert result.exit_code == 2
        assert sentence in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    result = ccp_data("build", "glyphs")
    assert (result.exit_code, result.stderr) == (2, "name: expected glyphs-large, got 'glyphs'\n")


def test_a_run_keeps_the_whole_path_of_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it goes on from another folder too."""
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(ccp_train, ["--data", "sop", "--data-root", "photos", "--show-config"])
    assert yaml.safe_load(shown.stdout)["data"]["root"] == f"{tmp_path}/photos"


def test_broken_images_are_listed(tmp_path: Path) -> None:
    image_trees.sop(tmp_path)
    cut = [next(tmp_path.glob(f"*/11108512287{c}_1.JPG")) for c in (1, 5)]
    for path in cut:
        path.write_bytes(path.read_bytes()[:-300])
    result = ccp_data(
        "check", "sop", "--data-root", str(tmp_path), "--counts=any", "--images", "--workers", "2"
    )
    assert result.exit_code == 1
    assert [line.split(" cannot")[0] for line in result.stderr.splitlines()] == [
        *(f"image {path}" for path in cut),
        "2 images are broken",
    ]


def test_a_check_tries_all_images_whatever_is_remembered(tmp_path: Path) -> None:
    """A disk may have lost a part of a file that looks the same."""
    root = image_trees.sop(tmp_path / "set")
    command = ("check", "sop", "--data-root", str(root), "--counts=any", "--images", "--workers", "0")
    assert ccp_data(*command).exit_code == 0
    path = next(root.glob("*/111085122871_1.JPG"))
    before, content = path.stat(), bytearray(path.read_bytes())
    content[:] = bytes(len(content))
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    result = ccp_data(*command)
    assert (result.exit_code, result.stderr.splitlines()[1:]) == (1, ["1 images are broken"])


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def without_typer(name: str, *rest: Any, **options: Any) -> Any:
        if name == "typer":
            raise ModuleNotFoundError("No module named 'typer'", name="typer")
        return real(name, *rest, **options)

    monkeypatch.delitem(sys.modules, "ccp_fast.cli.data_command")
    monkeypatch.setattr(builtins, "__import__", without_typer)
    with pytest.raises(SystemExit) as stopped:
        data.main()
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "ccp-data needs typer: pip install 'ccp-fast[train]'\n"
