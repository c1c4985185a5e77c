"""What a run leaves on the disk: checkpoints, its folder, its rows of metrics."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from helpers import assert_same_state

pytest.importorskip("safetensors")

from ccp_fast.training import checkpoint, trainer
from ccp_fast.training.checkpoint import Checkpoint, DamagedCheckpoint
from ccp_fast.training.display import Display
from ccp_fast.training.errors import UserError
from ccp_fast.training.metrics import MetricLog, read_rows
from ccp_fast.training.run_folder import RunFolder, numbered
from ccp_fast.training.settings import Config

QUIET = Display(quiet=True)


def test_a_checkpoint_reads_back_as_written(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    state: dict[str, Any] = {
        "tensors": [shared, shared.T, shared[1:], torch.tensor(True), torch.arange(3), torch.empty(0, 2)],
        "by number": {0: {"step": torch.tensor(2.0)}, 5: None},
        "numbers": [1, 0.1, float("inf"), True, None, "text <&> \u2603"],
    }
    images = torch.randn(2, 3, 4, 5)
    state["images"] = [images, images.contiguous(memory_format=torch.channels_last), images[:, :1]]
    checkpoint.write(tmp_path / "a", Checkpoint(12, None, state))
    back = checkpoint.read(tmp_path / "a")
    assert [x.stride() for x in back.state["images"][:2]] == [x.stride() for x in state["images"][:2]]
    assert (back.step, back.best_step) == (12, None)
    assert_same_state(state, back.state)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_checkpoint_refuses_what_it_cannot_keep(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="/a/0: expected tensors"):
        checkpoint.write(tmp_path / "a", Checkpoint(1, 1, {"a": [object()]}))
    assert not list(tmp_path.iterdir())


def test_every_cut_and_every_changed_byte_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    checkpoint.write(path, Checkpoint(3, 2, {"weights": torch.arange(20.0), "number": 0.5}))
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedCheckpoint):
            checkpoint.read(path)
    for position in range(0, len(whole), 7):
        changed = bytearray(whole)
        changed[position] ^= 0x11
        path.write_bytes(bytes(changed))
        try:
            content = checkpoint.read(path)
        except DamagedCheckpoint:
            continue
        # What may change without being noticed is white space of the header and the like.
        assert (content.step, content.best_step) == (3, 2)
        assert_same_state(content.state, {"weights": torch.arange(20.0), "number": 0.5})
    path.unlink()
    with pytest.raises(DamagedCheckpoint):
        checkpoint.read(path)


def test_a_run_folder_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder.create(path, Config(), {})
    before = sorted(path.rglob("*"))
    with pytest.raises(UserError, match="exists already: choose another folder, or go on with --resume"):
        RunFolder.create(path, Config(), {})
    assert sorted(path.rglob("*")) == before
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        RunFolder.create(file, Config(), {})
    with pytest.raises(UserError, match="cannot be made"):
        RunFolder.create(file / "run", Config(), {})
    assert file.read_text() == "mine"
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path / "nowhere")


def test_numbered_folders_count_on(tmp_path: Path) -> None:
    assert numbered(tmp_path / "runs", "a").name == "a-001"
    for name in ("a-001", "a-009", "a-b-011", "b-050"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert numbered(tmp_path / "runs", "a").name == "a-010"


def test_two_processes_cannot_write_the_same_run(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_training.config(), {})
    with run.lock(), pytest.raises(UserError, match="is being written by another process"):
        trainer.resume(run.path, QUIET)


def test_a_process_that_was_forked_has_no_part_in_the_lock(tmp_path: Path) -> None:
    """Such as a worker that decodes images and outlives a killed trainer by some seconds."""
    run = RunFolder.create(tmp_path / "run", tiny_training.config(), {})
    end_of_test, begin = os.pipe()
    runs, tell = os.pipe()
    with run.lock():
        child = os.fork()
        if child == 0:
            os.close(begin)
            os.write(tell, b"x")
            os.read(end_of_test, 1)
            os._exit(0)
        os.read(runs, 1)
    try:
        with run.lock():
            pass
    finally:
        os.close(begin)
        os.waitpid(child, 0)
        for descriptor in (end_of_test, runs, tell):
            os.close(descriptor)


def test_old_checkpoints_go_but_the_best_of_each_kept_one_stays(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", Config(), {})
    for step, best in [(1, 1), (2, 1), (3, 3), (4, 3), (5, 3)]:
        run.save(Checkpoint(step, best, {}))
    assert [int(p.stem[5:]) for p in sorted((run.path / "checkpoints").iterdir())] == [3, 4, 5]
    run.save(Checkpoint(6, 6, {}))
    assert [int(p.stem[5:]) for p in sorted((run.path / "checkpoints").iterdir())] == [3, 5, 6]


def test_a_metric_log_forgets_later_rows_and_half_a_line(tmp_path: Path) -> None:
    log = MetricLog(tmp_path, "m")
    for step in (1, 2, 3):
        log.append({"step": step, "value": step / 3, "note": None})
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"step": 4, "va')
    log = MetricLog(tmp_path, "m")
    log.truncate(2)
    log.append({"step": 3, "value": 9.0, "note": None})
    assert [row["value"] for row in read_rows(tmp_path / "m.jsonl")] == [1 / 3, 2 / 3, 9.0]
    assert (tmp_path / "m.csv").read_text().split() == [
        "step,value,note",
        f"1,{1 / 3},",
        f"2,{2 / 3},",
        "3,9.0,",
    ]
