"""Worker processes that decode: the same bits for any number of them, bounded, and gone when they should be."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from image_runs import COLOUR, config_of, followed, plan, training_images
from training_runs import QUIET, assert_same_results

pytest.importorskip("safetensors")

from ccp_fast.cli.errors import one_sentence
from ccp_fast.training import protocols, trainer
from ccp_fast.training.config import to_yaml
from ccp_fast.training.inputs.files import AHEAD, FilesInput, Pictures, Request, loader
from ccp_fast.training.learner import Learner
from ccp_fast.training.workers import MOST, worker_count

pytestmark = pytest.mark.usefixtures("torch_as_it_was")


def test_a_batch_does_not_depend_on_the_workers_nor_on_where_a_run_began(tree: Path) -> None:
    alone, two, one = (followed(tree, f"data.workers={n}") for n in (0, 2, 1))
    before = torch.get_rng_state()
    batches = [alone.augmented(step, plan(step)) for step in range(6)]
    for step in range(6):
        assert torch.equal(two.augmented(step, plan(step)), batches[step])
    for step in (4, 5, 1, 2):
        assert torch.equal(one.augmented(step, plan(step)), batches[step])
    assert not torch.equal(followed(tree, "seed=1").augmented(2, plan(2)), batches[2])
    assert not torch.equal(alone.augmented(3, plan(2)), batches[2])  # the same images at another step
    assert torch.equal(torch.get_rng_state(), before)  # torch's generator belongs to the run
    plain = [torch.cat(list(x.plain_batches(torch.arange(20), 7))) for x in (alone, two)]
    assert torch.equal(*plain)


def test_a_part_of_a_batch_is_as_in_the_whole(tree: Path) -> None:
    whole = followed(tree)
    for rank in range(2):
        part = slice(rank, None, 2)
        for workers in (0, 1):
            one_of_two = FilesInput(training_images(tree), config_of(tree, f"data.workers={workers}"), COLOUR)
            one_of_two.follow(plan, part)
            for step in range(2):
                expected = whole.augmented(step, plan(step))[part]
                assert torch.equal(one_of_two.augmented(step, plan(step), part), expected)
    nothing = torch.arange(0)  # of a process that has no more images while others have
    assert [x.shape for x in whole.plain_batches(nothing, 7)] == [(0, 3, COLOUR.size, COLOUR.size)]
    assert len(whole.augmented(0, plan(0), slice(6, None, 7))) == 0


def test_a_plan_that_changes_is_only_slower(tree: Path) -> None:
    alone, ahead = (
        followed(tree),
        FilesInput(training_images(tree), config_of(tree, "data.workers=2"), COLOUR),
    )
    shift = 0

    def changing(step: int) -> Sequence[int]:
        return [(i + shift) % 24 for i in plan(step)]

    ahead.follow(changing)
    for step in range(9):
        shift = step // 3 * 5
        assert torch.equal(ahead.augmented(step, changing(step)), alone.augmented(step, changing(step)))
    other = [0, 1, 2]  # what no plan ever said
    assert torch.equal(ahead.augmented(9, other), alone.augmented(9, other))


def test_workers_are_a_bounded_number_of_batches_ahead(tree: Path) -> None:
    asked: list[int] = []
    opened = FilesInput(training_images(tree), config_of(tree, "data.workers=2", "steps=50"), COLOUR)
    opened.follow(lambda step: asked.append(step) or plan(step))  # type: ignore[func-returns-value]
    for step in range(5):
        opened.augmented(step, plan(step))
        assert max(asked) <= step + 2 * AHEAD
    assert asked == sorted(asked)
    assert worker_count(3) == 3
    assert 1 <= worker_count(None) <= MOST


def test_workers_end_at_once_even_where_a_cycle_held_them(tree: Path) -> None:
    opened = followed(tree, "data.workers=2")
    opened.augmented(0, plan(0))
    opened.augmented(1, plan(1))
    opened.itself = opened  # type: ignore[attr-defined]
    begun = time.monotonic()
    del opened
    gc.collect()
    assert time.monotonic() - begun < 4  # torch waits 5 seconds for a worker that was not told


def test_ctrl_c_leaves_the_workers_alone(tree: Path) -> None:
    """A terminal sends it to them too; the trainer has to finish its step."""
    pictures = Pictures(training_images(tree), config_of(tree).crop, COLOUR, 0)
    requests = loader(pictures, [Request([0]), Request([1]), Request([2])] * 4, 1)
    answers: Any = iter(requests)
    next(answers)
    for worker in answers._workers:
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(answers)) == 11


def test_workers_that_find_no_shared_memory_send_copies(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
        )

    shared = followed(tree, "data.workers=1").augmented(0, plan(0))
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    copied = followed(tree, "data.workers=1")
    assert torch.equal(copied.augmented(0, plan(0)), shared)
    assert torch.equal(copied.augmented(0, plan(0)), followed(tree).augmented(0, plan(0)))


SMALL_SHM = """
import sys, torch
from pathlib import Path
from test_image_files import COLOUR, FilesInput, config_of, training_images
images = training_images(Path(sys.argv[1]))
crop = ["crop.shorter_side=256", "crop.least=256", "data.workers=2"]
wanted = type(COLOUR)(channels=3, size=256, mean=(0.0,) * 3, std=(1.0,) * 3)
alone, ahead = (FilesInput(images, config_of(Path(sys.argv[1]), *crop, f"data.workers={n}"), wanted) for n in (0, 2))
ahead.follow(lambda step: [step, 3, 5])
for step in range(5):
    assert torch.equal(ahead.augmented(step, [step, 3, 5]), alone.augmented(step, [step, 3, 5]))
"""


@pytest.mark.slow
def test_a_small_shm_is_enough(tree: Path) -> None:
    """Containers often have one of 64 MB. Here a batch is 590 kB, and /dev/shm less."""
    own = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=300k tmpfs /dev/shm && exec "$@"', "sh"]
    if shutil.which("unshare") is None or subprocess.run([*own, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount a /dev/shm of its own")
    command = [*own, sys.executable, "-c", SMALL_SHM, str(tree)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")


KILLED = """
import multiprocessing, os, signal
from ccp_fast.cli.train_command import app
from ccp_fast.training.learner import Learner
real = Learner.train_step
def train_step(learner):
    if learner.step == 9:
        for worker in multiprocessing.active_children()[:1]:
            os.kill(worker.pid, signal.SIGKILL)
    return real(learner)
Learner.train_step = train_step
app()
"""


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_a_run_with_one_sentence(tree: Path, tmp_path: Path) -> None:
    """As the kernel does where memory runs out."""
    config = config_of(tree, "data.workers=2", "steps=12", "method=plain")
    (tmp_path / "a.yaml").write_text(to_yaml(config))
    command = [
        sys.executable,
        "-c",
        KILLED,
        "--config",
        str(tmp_path / "a.yaml"),
        "--out",
        str(tmp_path / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    pattern = (  # torch notices it, or what was being sent ends
        r"a process that decodes images was ended \((DataLoader worker \(pid|\[Errno).*\): memory may be too small for "
        r"so many \(data.workers\); a run that was training goes on with ccp-train --resume\n"
    )
    assert re.fullmatch(pattern, done.stderr), done.stderr
    assert protocols.resume(tmp_path / "run", QUIET)["steps"] == 12


def test_other_errors_of_a_run_are_not_taken_for_that() -> None:
    with pytest.raises(RuntimeError, match="something else"), one_sentence():
        raise RuntimeError("something else of a DataLoader worker (pid 3)")


def test_runs_are_the_same_to_the_bit_with_other_workers_and_after_a_crash(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        "steps=12",
        "method=intra-batch",
        "intra_batch.heads=2",
    ]  # drop-out draws from torch's generator
    trainer.train(config_of(tree, *settings), tmp_path / "alone", QUIET)
    real = Learner.train_step

    def crash(learner: Learner) -> float:
        if learner.step == 7:
            raise RuntimeError("power cut")
        return real(learner)

    monkeypatch.setattr(Learner, "train_step", crash)
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.train(config_of(tree, *settings, "data.workers=2"), tmp_path / "two", QUIET)
    monkeypatch.setattr(Learner, "train_step", real)
    trainer.resume(tmp_path / "two", QUIET)
    assert_same_results(tmp_path / "alone", tmp_path / "two")


@pytest.mark.slow
def test_a_run_with_workers_stops_by_ctrl_c_and_goes_on_at_once_after_a_kill(
    tree: Path, tmp_path: Path
) -> None:
    config = config_of(tree, "data.workers=2", "steps=400", "evaluation.every=100", "method=plain")
    (tmp_path / "a.yaml").write_text(to_yaml(config))
    command = [sys.executable, "-m", "ccp_fast.cli.train"]
    start = [*command, "--config", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "run")]
    trainer.train(config, tmp_path / "unbroken", QUIET)

    def until_it_trains(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        while "MAP@R seen" not in (line := process.stdout.readline()):
            assert line, "ended before it began"
        time.sleep(0.3)

    for how in (signal.SIGKILL, signal.SIGINT):
        arguments = [*command, "--resume", str(tmp_path / "run")] if (tmp_path / "run").exists() else start
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        until_it_trains(process)
        if how == signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does: the workers get it too
            _, said = process.communicate(timeout=60)
            assert process.returncode == 130
            assert re.fullmatch(
                r"stopped and saved at step \d+; go on with: ccp-train --resume .*/run\n", said
            )
        else:
            process.kill()  # its workers notice it some seconds later
            process.wait()
    trainer.resume(tmp_path / "run", QUIET)
    assert_same_results(tmp_path / "unbroken", tmp_path / "run")
