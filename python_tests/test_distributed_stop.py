"""Ctrl-C over several processes: all stop behind one step, save it, and go on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import image_trees
import pytest
import torch.distributed as dist

pytest.importorskip("pydantic", reason="ccp-train needs the extra [train]")
from ranks import on_ranks
from test_distributed_trainer import ENVIRONMENT, SCRIPT, TORCHRUN, launch, settings, summary_of
from tiny_training import config, images

from ccp_fast.training import datasets
from ccp_fast.training.display import Display
from ccp_fast.training.distributed import Spread, resume, train
from ccp_fast.training.distributed.learner import DistributedLearner
from ccp_fast.training.interrupt import Interrupted
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.run_folder import RunFolder


def stopped_and_gone_on_with(folder: Path, method: str, stops: dict[int, int], rel: float) -> None:
    """stops: by the step in which a signal comes, that behind which all stop."""
    datasets.glyphs = images  # type: ignore[assignment]
    quiet, step = Display(quiet=True), DistributedLearner.train_step
    wanted = config(f"method={method}", "evaluation.nmi=false", "steps=12", "loggers=[]")
    train(folder / f"{method} unbroken", wanted, Spread("ddp", 1.0), quiet)

    def asked(learner: DistributedLearner, number: int) -> float:
        if learner.rank == 1 and stops.pop(number, None):
            for sent in (signal.SIGINT, signal.SIGTERM):  # what torchrun passes on may have come already
                signal.raise_signal(sent)
        return step(learner, number)

    run = folder / method
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DistributedLearner, "train_step", asked)
        for last in list(stops.values()):
            sentence = rf"^stopped and saved at step {last}; go on with: torchrun .*{method}$"
            with pytest.raises(Interrupted, match=sentence):
                _ = (
                    resume(run, None, quiet, wanted)
                    if run.exists()
                    else train(run, wanted, Spread("ddp", 1.0), quiet)
                )
            assert (run / "checkpoints" / f"step-{last:08d}").is_dir()
            dist.barrier()
        resume(run, None, quiet, wanted)
    if dist.get_rank() == 0:
        for log in ("metrics", "subproblems"):
            mine, theirs = (read_rows(path / f"{log}.jsonl") for path in (run, folder / f"{method} unbroken"))
            assert [row["step"] for row in mine] == [row["step"] for row in theirs]
        for one, other in zip(
            *(read_rows(p / "metrics.jsonl") for p in (run, folder / f"{method} unbroken")), strict=True
        ):
            assert one["loss"] == pytest.approx(other["loss"], rel=rel)
            assert one["val_map_at_r"] == pytest.approx(other["val_map_at_r"], abs=0.02)


def test_all_stop_behind_one_step_and_go_on_from_there(tmp_path: Path) -> None:
    """Before there is a best step, and later.

    In training a batch norm has no use for its running statistics: what is lost of them changes no weight.
    """
    on_ranks(2, stopped_and_gone_on_with, tmp_path, "plain", {1: 3, 5: 7}, 0.0)


@pytest.mark.slow
def test_ccp_stops_before_it_chooses_proxies_and_with_an_evaluation(tmp_path: Path) -> None:
    on_ranks(2, stopped_and_gone_on_with, tmp_path, "ccp", {1: 3, 3: 5, 6: 8, 8: 10}, 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_what_torchrun_is_sent(sent: signal.Signals, tmp_path: Path) -> None:
    """With workers that decode images, who get the signal too."""
    root = image_trees.sop(tmp_path / "sop", classes=24, samples=4)
    data = [f"data.root={root}", "data.name=sop", "data.counts=any", "data.workers=1", "evaluation.nmi=false"]
    data += ["model.name=glyph-cnn", "crop.shorter_side=32", "crop.least=12"]
    options = settings(*data, "steps=100000", "evaluation.every=40", "ccp.warm_start=0.0")
    here = ["--rdzv-endpoint", "localhost:0", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*TORCHRUN, *here, SCRIPT, "--out", "run", *options],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        rows = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (rows.exists() and rows.stat().st_size):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(0.5)
        os.kill(process.pid, sent)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert "stopped and saved at step" in errors, errors
    last = int(errors.split("stopped and saved at step ")[1].split(";")[0])
    run = RunFolder.open(tmp_path / "run")
    assert (run.path / "checkpoints" / f"step-{last:08d}").is_dir()
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("steps: 100000", f"steps: {last + 3}"))
    done = launch(tmp_path, 1, "--out", "run", "--resume")
    assert done.returncode == 0, done.stderr
    assert summary_of(run.path)["steps"] == last + 3
