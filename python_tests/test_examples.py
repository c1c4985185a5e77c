"""The examples run, and the Lightning callback does what the loop in CCP's docstring does."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import image_trees
import pytest
import torch
from pytorch_metric_learning import losses as peers

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def example(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_every_example_has_a_test() -> None:
    assert {p.stem for p in EXAMPLES.glob("*.py")} == {
        "alternating",
        "distributed",
        "fast_proxies",
        "from_pml",
        "intra_batch",
        "lightning_ccp",
        "own_trainer",
        "ten_million_classes",
        "train_sop",
        "xbm",
    }


@pytest.fixture(scope="module")
def untrained() -> float:
    """All examples begin with the same network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        return float(example("own_trainer").main(steps=0))


FROM_SCRATCH = [("alternating", "by_proxies"), ("fast_proxies", "main"), ("intra_batch", "main")]


@pytest.mark.parametrize(
    ("name", "steps"), [("own_trainer", 40), ("xbm", 100), ("alternating", 60), ("from_pml", 40)]
)
def test_an_example_learns(name: str, steps: int, untrained: float) -> None:
    trained = example(name).main(steps=steps)
    assert trained > untrained + 0.02  # what comes out of chance is 0.002, out of raw pixels 0.2


@pytest.mark.parametrize(("name", "main"), FROM_SCRATCH)
def test_an_example_runs(name: str, main: str, untrained: float) -> None:
    """Proxies and heads drawn at random take longer to be of use than a test may."""
    assert untrained != getattr(example(name), main)(steps=6) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("name", "main"), FROM_SCRATCH)
def test_an_example_learns_in_the_end(name: str, main: str, untrained: float) -> None:
    assert getattr(example(name), main)() > untrained + 0.05


def test_proxies_of_an_old_script_go_on() -> None:
    peer = peers.SubCenterArcFaceLoss(num_classes=5, embedding_size=8, margin=28.6, sub_centers=3)
    ours = example("from_pml").with_old_proxies(peer.state_dict())
    x, labels = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 5
    torch.testing.assert_close(ours(x, labels), peer(x, labels), rtol=1e-5, atol=1e-6)


def launch(folder: Path, *command: str) -> str:
    """As torchrun does, on this machine."""
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=folder, timeout=500, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(EXAMPLES)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_distributed_example_goes_on_with_other_ranks(tmp_path: Path) -> None:
    run = ("-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0")
    script = (str(EXAMPLES / "distributed.py"), "--checkpoint", "run")
    few = launch(tmp_path, *run, "--nproc-per-node", "3", *script, "--steps", "100")
    more = launch(
        tmp_path,
        *run,
        "--nproc-per-node",
        "2",
        *script,
        "--steps",
        "250",
        "--network",
        "fsdp",
        "--sample-rate",
        "0.5",
    )
    before, after = (float(text.rsplit(maxsplit=1)[1]) for text in (few, more))
    assert after > before + 0.02


@pytest.mark.slow
def test_a_hundred_thousand_classes_in_two_processes(tmp_path: Path) -> None:
    lines = launch(tmp_path, str(EXAMPLES / "ten_million_classes.py"), "--classes", "400000").splitlines()
    assert len(lines) == 2
    for line in lines:
        found = re.search(r"memory planned ([\d.]+) GB, taken ([\d.]+) GB", line)
        assert found is not None
        planned, taken = (float(x) for x in found.groups())
        assert abs(taken - planned) < 0.1


def needs_lightning() -> Any:
    return pytest.importorskip("lightning", reason="optional: pip install 'ccp-fast[lightning]'")


def test_the_lightning_example_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_lightning()
    monkeypatch.chdir(tmp_path)
    best = example("lightning_ccp").main(steps=48)
    assert best is not None
    assert 0.1 < best < 1


def test_the_reference_script_is_short_and_uses_what_is_public() -> None:
    pytest.importorskip("safetensors", reason="ccp-train needs the extra [train]")
    text = (EXAMPLES / "train_sop.py").read_text(encoding="utf-8")
    assert text.count("\n") <= 150
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if (node.module or "").startswith("ccp_fast")]
    assert len(ours) > 5
    for node in ours:
        public = importlib.import_module(str(node.module)).__all__
        assert {alias.name for alias in node.names} <= set(public), node.module


def test_the_reference_script_trains_on_the_layout_of_sop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("safetensors", reason="ccp-train needs the extra [train]")
    script = example("train_sop")
    measure = script.measure

    def held_out_gain_nothing(*arguments: Any) -> dict[str, float]:
        """So that sub-problems end, whatever so small a run learns."""
        result = measure(*arguments)
        return result if result["num_queries"] == 25 else {**result, "map_at_r": 0.5}

    monkeypatch.setattr(script, "measure", held_out_gain_nothing)
    root = image_trees.sop(tmp_path / "Stanford_Online_Products", classes=10, samples=5)
    small = ["--weights", "random", "--image-size", "32", "--batch-classes", "2", "--workers", "0"]
    counted = ["--steps", "9", "--evaluate-every", "1", "--held-out", "0.4", "--any-counts"]
    result = script.main([str(root), *small, *counted])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:-1]] == [str(step) for step in range(1, 10)]
    assert [line.split()[3] for line in lines[:-1]] == ["0"] * 4 + ["1"] * 4 + ["2"]
    assert lines[-1].startswith("5 test classes, neither trained on nor held out for it: map_at_r 0.")
    assert "num_queries" not in lines[-1]
    assert result["num_queries"] == 25
    assert result["recall_at_10"] <= result["recall_at_100"] == result["recall_at_1000"] == 1
    assert 0 < result["map_at_r"] < 1
