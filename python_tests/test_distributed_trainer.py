"""`torchrun ... ccp-train distributed`: runs, goes on with other processes, and says what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pydantic", reason="ccp-train needs the extra [train]")
from tiny_training import SETTINGS

HERE = Path(__file__).parent


def launch(folder: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    run = ["-m", "torch.distributed.run", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    return subprocess.run(
        [sys.executable, *run, "--nproc-per-node", str(processes), str(HERE / "distributed_training.py"), *arguments],
        capture_output=True, text=True, cwd=folder, timeout=300, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)},
    )  # fmt: skip


def settings(*more: str) -> list[str]:
    return [x for setting in (*SETTINGS, *more) for x in ("--set", setting)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "few", "more"), [("ccp", "ddp", "fsdp"), ("ccp", "fsdp", "ddp"), ("plain", "ddp", "ddp")]
)
def test_a_run_goes_on_with_other_processes(tmp_path: Path, method: str, few: str, more: str) -> None:
    shorter = settings(f"method={method}", "loss.name=c2")
    begun = launch(tmp_path, 3, "--out", "run", "--network", few, *shorter)
    assert begun.returncode == 0, begun.stderr
    whole = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in whole] == [4, 8, 12, 16, 20, 24]
    # As if it had been stopped behind the last evaluation but for the final numbers.
    (tmp_path / "run" / "summary.json").unlink()
    resumed = launch(tmp_path, 2, "--out", "run", "--network", more, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["processes"] == 2
    assert summary["best_step"] in {row["step"] for row in whole}
    best = max(row["val_map_at_r"] for row in whole)
    assert summary["val"]["map_at_r"] == best
    assert 0 < summary["test"]["map_at_r"] < 1


@pytest.mark.slow
def test_one_process_is_ccp_train(tmp_path: Path) -> None:
    """Step by step: the same losses, and the same retrieval on new classes."""
    options = settings("method=ccp", "loss.name=c2")
    done = launch(tmp_path, 1, "--out", "distributed", *options)
    assert done.returncode == 0, done.stderr
    alone = [sys.executable, str(HERE / "tiny_training.py"), "--quiet", "--out", "alone", *options]
    subprocess.run(alone, check=True, cwd=tmp_path, timeout=300)
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("distributed", "alone")
    ]
    for mine, whole in zip(*rows, strict=True):
        for name, value in mine.items():
            assert value == pytest.approx(whole[name], rel=1e-4), name


@pytest.mark.slow
def test_sampled_classes(tmp_path: Path) -> None:
    done = launch(
        tmp_path, 2, "--out", "run", "--network", "fsdp", "--sample-rate", "0.5",
        *settings("method=ccp", "loss.name=proxy_nca"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["sample_rate"] == 0.5


@pytest.mark.slow
def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    for arguments, message in (
        (["--out", "run", *settings("method=xbm")], "method: expected plain or ccp over several processes"),
        (["--out", "other", *settings("ccp.pool=memory")], "ccp.pool: expected fresh over several processes"),
        (["--out", "none", "--resume"], "none is not a run folder"),
        (["--out", "run", "--network", "zero"], "expected --network ddp or fsdp"),
    ):
        done = launch(tmp_path, 2, *arguments)
        assert done.returncode != 0
        assert message in done.stderr
