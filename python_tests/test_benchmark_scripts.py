"""The scripts in benchmarks/ that measure at scale: what they compare agrees, and they keep what they measured."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import one_thread  # noqa: F401

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
IMAGES = 480

pytest.importorskip("typer", reason="benchmarks need the extra [bench]")


@pytest.fixture(scope="module")
def at_scale() -> ModuleType:
    spec = importlib.util.spec_from_file_location("at_scale", BENCHMARKS / "evaluation_at_scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["at_scale"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("queries", [0, 96])
@pytest.mark.parametrize(
    "name",
    [
        "ccp_fast, backend=faiss",
        "faiss",
        "pytorch-metric-learning, faiss",
        "pytorch-metric-learning, CustomKNN",
        "pytorch-metric-learning, k=None",
    ],
)
def test_all_compute_the_same(at_scale: ModuleType, name: str, queries: int) -> None:
    if "faiss" in name or "None" in name:
        pytest.importorskip("faiss", reason="pip install 'ccp-fast[faiss]'")
    if "pytorch" in name:
        pytest.importorskip("pytorch_metric_learning")
    task = at_scale.make_task(IMAGES, queries)
    expected, found = at_scale.RETRIEVAL["ccp_fast"](task), at_scale.RETRIEVAL[name](task)
    assert 0.5 < expected["map_at_r"] < 1
    for metric in at_scale.METRICS:
        assert found[metric] == pytest.approx(expected[metric], abs=1e-7), metric


def run(script: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments), "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_rows_are_added_and_what_takes_too_much_is_stopped(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    done = run(
        "evaluation_at_scale.py", "--images", IMAGES, "--queries", 96, "--only", "ccp_fast", "--out", out
    )
    assert done.returncode == 0, done.stderr
    done = run("evaluation_at_scale.py", "--only", "ccp_fast", "--limit-gb", "0.1", "--out", out)
    assert done.returncode == 1
    assert "stopped above 0.1 GB" in done.stdout
    first, second = json.loads(out.read_text())["rows"]
    assert first["all_queries_s"] == pytest.approx(first["seconds"] * IMAGES / 96)
    assert 0 < first["extra_bytes"] < 1e9
    assert (first["images"], first["queries"], second["images"]) == (IMAGES, 96, 60_000)
    assert second["failed"] == "stopped above 0.1 GB"
    assert first["commit"] == second["commit"]


@pytest.mark.slow
def test_reinitialisation_is_measured(tmp_path: Path) -> None:
    done = run("reinitialisation.py", "--classes", 40, "--repeats", 2, "--out", tmp_path / "rows.json")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert len(rows) == len(done.stdout.splitlines()) == 5
    assert all(row["cpu_ms"] > 0 and row["classes"] == 40 for row in rows)
