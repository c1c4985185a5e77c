"""What happens to a run when the disk is full or the process is killed: nothing is lost, and it says so."""

from __future__ import annotations

import errno
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

import pytest
import tiny_training
from training_runs import QUIET, assert_same_results, tiny_data  # noqa: F401

pytest.importorskip("safetensors")

from ccp_fast._system import files
from ccp_fast.training import trainer
from ccp_fast.training.errors import UserError
from ccp_fast.training.run_folder import RunFolder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run; not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccp_fast.training.datasets.glyphs", tiny_training.images)
        trainer.train(tiny_training.config(), path, QUIET)
    return path


def command(path: Path, *settings: str) -> list[str]:
    given = [part for setting in (*tiny_training.SETTINGS, *settings) for part in ("--set", setting)]
    return [sys.executable, "-u", tiny_training.__file__, *given, "--resume", "auto", "--out", str(path)]


@pytest.mark.parametrize(
    ("what", "step"),
    [
        ("step-00000004.safetensors", None),
        ("step-00000016.safetensors", 12),
        ("summary.json", 24),
        ("best", 24),
    ],
)
def test_a_full_disk_ends_the_run_with_a_sentence_and_costs_what_came_after_the_last_checkpoint(
    what: str, step: int | None, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    flush = os.fsync

    def full(descriptor: int) -> None:
        if what in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(UserError) as error:
            trainer.train(tiny_training.config(), path, QUIET)
    saved = "it has no checkpoint yet" if step is None else f"it is saved up to step {step}"
    assert re.fullmatch(
        rf"\S*{what}\S* cannot be written: No space left on device; {saved}, "
        rf"go on with: ccp-train --resume {path}",
        str(error.value),
    )
    assert list(path.rglob("*.tmp")) == []
    trainer.resume(path, QUIET)
    assert_same_results(finished, path)


def test_a_row_that_does_not_fit_on_the_disk_is_told_too(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, opened = tmp_path / "run", Path.open

    def open_full(file: Path, mode: str = "r", *rest: Any, **options: Any) -> IO[Any]:
        if mode == "a" and file.name == "metrics.csv" and len(file.read_text().splitlines()) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(file, mode, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", open_full)
        with pytest.raises(
            UserError, match=r"metrics.csv cannot be written: No space left .* up to step 8, go on"
        ):
            trainer.train(tiny_training.config(), path, QUIET)
    trainer.resume(path, QUIET)
    assert_same_results(finished, path)


def test_a_limit_of_the_system_is_told_by_the_command(finished: Path, tmp_path: Path) -> None:
    """A real one: no file of this process may grow beyond 20 kB, which a checkpoint does."""
    path = tmp_path / "run"
    done = subprocess.run(
        command(path),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert (
        "step-00000004.safetensors cannot be written: File too large; it has no checkpoint yet" in done.stderr
    )
    trainer.resume(path, QUIET)
    assert_same_results(finished, path)


def test_what_a_killed_process_had_begun_to_write_is_removed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_training.config(), {})
    for folder in (run.path, run.path / "checkpoints"):
        (folder / ".step-00000004.safetensors.abc.tmp").write_bytes(b"half")
        (folder / "notes.tmp").write_text("mine")
    trainer.resume(run.path, QUIET)
    assert sorted(p.name for p in run.path.rglob("*.tmp")) == ["notes.tmp", "notes.tmp"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_twenty_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = ("steps=1200", "optimizer.ema_decay=0.99", "ccp.project_every=17")
    trainer.train(tiny_training.config(*settings), tmp_path / "unbroken", QUIET)
    path, chance = tmp_path / "killed", random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for kill in range(20):
        process = subprocess.Popen(
            command(path, *settings), stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        if kill % 5:  # while it trains, evaluates or saves: some rows after it began, and a little later
            left = chance.randrange(5)
            for line in process.stdout:
                if "MAP@R seen" in line or re.match(r"\s+\d+ ", line):  # the head of the table, or a row
                    if left == 0:
                        break
                    left -= 1
        else:  # while it starts
            time.sleep(chance.uniform(0, 2.5))
        time.sleep(chance.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was not killed but ended by itself"
        process.stdout.close()
    assert not (path / "summary.json").exists()
    subprocess.run([*command(path, *settings), "--quiet"], check=True, env=environment)
    assert_same_results(tmp_path / "unbroken", path)
    assert list(path.rglob("*.tmp")) == []
