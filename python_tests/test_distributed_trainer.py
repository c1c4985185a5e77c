"""`torchrun ... ccp-train distributed`: runs, goes on with other processes, and says what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import image_trees
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("pydantic", reason="ccp-train needs the extra [train]")
from ranks import on_ranks
from tiny_training import SETTINGS, config, images
from training_runs import without_times

from ccp_fast.ccp import SubProblem
from ccp_fast.distributed import network_state
from ccp_fast.distributed.communication import Communicator
from ccp_fast.training import datasets, load_model
from ccp_fast.training.display import Display
from ccp_fast.training.distributed import Spread, resume, train
from ccp_fast.training.distributed.checkpoints import Checkpoints
from ccp_fast.training.distributed.learner import DistributedLearner
from ccp_fast.training.distributed.subproblems import of_all_classes
from ccp_fast.training.distributed.together import agreed
from ccp_fast.training.errors import UserError
from ccp_fast.training.learner import Learner
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.objective import PRESETS
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.trainer import resume as resume_alone

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
SCRIPT = str(HERE / "distributed_training.py")


def launch(folder: Path, processes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    here = ["--rdzv-endpoint", "localhost:0", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*TORCHRUN, *here, SCRIPT, *arguments],
        capture_output=True, text=True, cwd=folder, timeout=300, check=False, env=ENVIRONMENT,
    )  # fmt: skip


def settings(*more: str) -> list[str]:
    return [x for setting in (*SETTINGS, *more) for x in ("--set", setting)]


def summary_of(run: Path) -> dict[str, Any]:
    summary = RunFolder.open(run).summary
    assert summary is not None
    return summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "few", "more"), [("ccp", "ddp", "fsdp"), ("ccp", "fsdp", "ddp"), ("plain", "ddp", "ddp")]
)
def test_a_run_goes_on_with_other_processes(tmp_path: Path, method: str, few: str, more: str) -> None:
    begun = launch(
        tmp_path, 3, "--out", "run", "--network", few, *settings(f"method={method}", "loss.name=c2")
    )
    assert begun.returncode == 0, begun.stderr
    run = tmp_path / "run"
    whole = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in whole] == [4, 8, 12, 16, 20, 24]
    subproblems = read_rows(run / "subproblems.jsonl")
    assert [row["index"] for row in subproblems] == ([0, 1, 2, 3] if method == "ccp" else [])
    first = summary_of(run)
    assert first["processes"] == 3
    assert len(list((run / "checkpoints").iterdir())) in (2, 3)  # the last two, and the best one

    # As if it had been stopped behind the evaluation before the last.
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step-00000024")
    resumed = launch(tmp_path, 2, "--out", "run", "--network", more, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    rows = read_rows(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [row["step"] for row in whole]
    assert rows[:5] == whole[:5]
    assert rows[5]["loss"] == pytest.approx(whole[5]["loss"], rel=0.3)  # batch norms have other batches
    assert read_rows(run / "subproblems.jsonl")[:3] == subproblems[:3]
    summary = summary_of(run)
    assert (summary["processes"], summary["network"]) == (2, more)
    best = max(row["val_map_at_r"] for row in rows)
    assert summary["val"]["map_at_r"] == best
    assert rows[summary["best_step"] // 4 - 1]["val_map_at_r"] == best
    if summary["best_step"] == first["best_step"] < 24:
        assert summary["test"] == pytest.approx(first["test"], abs=0.02)
    assert 0 < summary["test"]["map_at_r"] < 1


@pytest.mark.slow
def test_not_every_evaluation_is_saved(tmp_path: Path) -> None:
    """Those after the newest checkpoint are done again where the run goes on."""
    options = settings(
        "method=plain", "protocol.name=conventional", "checkpoints.every=2", "checkpoints.keep=9"
    )
    done = launch(tmp_path, 2, "--out", "run", *options)
    assert done.returncode == 0, done.stderr
    run, first = tmp_path / "run", summary_of(tmp_path / "run")
    whole = read_rows(run / "metrics.jsonl")
    folders = [run / "checkpoints" / f"step-{step:08d}" for step in (8, 16, 24)]
    assert sorted((run / "checkpoints").iterdir()) == folders
    assert first["seconds"]["saving"] > 0
    (run / "summary.json").unlink()
    shutil.rmtree(folders[-1])  # as if it had been killed behind the evaluation of step 20
    again = launch(tmp_path, 2, "--out", "run", "--resume")
    assert again.returncode == 0, again.stderr
    rows = read_rows(run / "metrics.jsonl")
    assert [without_times(row) for row in rows] == [without_times(row) for row in whole]
    assert summary_of(run)["test"] == first["test"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ccp", "plain"])
def test_one_process_is_ccp_train(tmp_path: Path, method: str) -> None:
    """Step by step: the same losses, the same retrieval on new classes, what is known of the proxies, and the end."""
    options = settings(f"method={method}", "loss.name=c2")
    done = launch(tmp_path, 1, "--out", "distributed", *options)
    assert done.returncode == 0, done.stderr
    alone = [sys.executable, str(HERE / "tiny_training.py"), "--quiet", "--out", "alone", *options]
    subprocess.run(alone, check=True, cwd=tmp_path, timeout=300, env=ENVIRONMENT)
    for log in ("metrics", "subproblems"):
        mine, theirs = (read_rows(tmp_path / name / f"{log}.jsonl") for name in ("distributed", "alone"))
        assert len(mine) == len(theirs)
        for row, other in zip(mine, theirs, strict=True):
            assert row.keys() == other.keys()
            for name in row.keys() - {"seconds", "milliseconds", "pool_milliseconds"}:
                want = other[name]
                assert row[name] == (None if want is None else pytest.approx(want, rel=1e-4)), name
    summary, other = (summary_of(tmp_path / name) for name in ("distributed", "alone"))
    assert other.keys() - summary.keys() == set()
    assert summary["test"] == pytest.approx(other["test"], rel=1e-4)


@pytest.mark.slow
def test_image_files_in_bf16(tmp_path: Path) -> None:
    """Decoded by the workers of each process, twice the same to the bit; then used as any run."""
    image_trees.folders(tmp_path / "tree", classes=12, samples=5)
    options = settings("compute.precision=bf16", "data.val_share=0.3", "data.workers=2", "method=ccp")
    for name in ("run", "again"):
        where = ["--data", "folders", "--data-root", "tree", "--out", name]
        done = launch(tmp_path, 2, "--network", "fsdp", *where, *options)
        assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    for log in ("metrics", "subproblems"):
        rows, again = (
            [
                {k: v for k, v in row.items() if "seconds" not in k}
                for row in read_rows(tmp_path / name / f"{log}.jsonl")
            ]
            for name in ("run", "again")
        )
        assert rows == again
    assert (run / "best.safetensors").read_bytes() != b""
    assert list((run / "tensorboard").iterdir())
    assert "torchrun --nproc-per-node 2" in (run / "report.html").read_text()
    summary = summary_of(run)
    assert 0 < summary["test"]["nmi"] <= 1

    for command in (
        ["train", "evaluate", "run", "--out", "numbers.json"],
        ["report", "run", "--out", "page.html"],
    ):
        module = f"ccp_fast.cli.{command[0]}"
        subprocess.run(
            [sys.executable, "-m", module, *command[1:]],
            check=True,
            cwd=tmp_path,
            timeout=100,
            env=ENVIRONMENT,
        )
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers == pytest.approx(summary["test"], abs=1e-3)
    model = load_model(run)
    assert model.config.compute.precision == "bf16"


@pytest.mark.slow
def test_sampled_classes(tmp_path: Path) -> None:
    done = launch(
        tmp_path, 2, "--out", "run", "--network", "fsdp", "--sample-rate", "0.5",
        *settings("method=ccp", "loss.name=proxy_nca"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert summary_of(tmp_path / "run")["sample_rate"] == 0.5
    (tmp_path / "run" / "summary.json").unlink()
    resumed = launch(tmp_path, 2, "--out", "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    summary = summary_of(tmp_path / "run")
    assert (summary["sample_rate"], summary["network"]) == (0.5, "fsdp")  # another rate were another loss


@pytest.mark.slow
def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    for arguments, message in (
        (settings("method=xbm"), "method: expected plain or ccp over several processes, got 'xbm'"),
        (["--network", "zero"], "--network: expected ddp or fsdp, got 'zero'"),
    ):
        done = launch(tmp_path, 2, "--out", "run", *arguments)
        assert done.returncode != 0
        assert done.stderr.count(message) == 1, done.stderr
        assert "[rank" not in done.stderr  # no traceback of a rank
        assert not (tmp_path / "run").exists()


def wrong_settings(folder: Path) -> None:
    datasets.glyphs = images  # type: ignore[assignment]
    first, quiet = dist.get_rank() == 0, Display(quiet=True)
    for wanted, sample_rate, message in (
        (["ccp.pool=memory"], 1.0, "ccp.pool: expected fresh over several processes, got 'memory'"),
        (["batch.classes=13"], 1.0, "batch.classes: expected at most 12"),
        (["evaluation.backend=faiss"], 1.0, "evaluation.backend: (expected ccp_fast over|faiss is not)"),
        (
            ["optimizer.warm_up_embedding=true", "method=plain"],
            1.0,
            "optimizer.warm_up_embedding: expected False over",
        ),
        (["data.name=folders"], 1.0, "data.root: expected the folder of folders"),
        (["method=plain"], 0.5, "--sample-rate: expected 1 for a loss within the batch, got 0.5"),
        (
            ["loss.name=proxy_nca", "loss.options.assignment=dynamic"],
            0.5,
            "--sample-rate: expected 1 with loss.options.assignment=dynamic",
        ),
        (["loss={name: lifted_structure, options: {variant: pair}}"], 1.0, "loss.options: variant: expected"),
    ):
        with pytest.raises(UserError, match=("^" + message) if first else "^$"):
            train(folder / "run", config(*wanted), Spread("ddp", sample_rate), quiet)
    assert not (folder / "run").exists()
    with pytest.raises(UserError, match=r"run is not a run folder" if first else "^$"):
        resume(folder / "run", None, quiet, config())

    def fails_here() -> None:
        if not first:
            raise UserError("of the other machine")

    with pytest.raises(UserError, match="^of the other machine$" if first else "^$"):
        agreed(fails_here)


def test_runs_of_one_and_of_several_processes_are_told_apart(tmp_path: Path) -> None:
    alone = RunFolder.create(tmp_path / "alone", config(), {})
    several = RunFolder.create(tmp_path / "several", config(), {"distributed": {"processes": 2}})
    alone.check_trained_by(processes=False)
    several.check_trained_by(processes=True)
    with pytest.raises(UserError, match=r"expected another command .* ccp-train distributed --resume --out"):
        resume_alone(tmp_path / "several", Display(quiet=True))
    with pytest.raises(UserError, match=r"expected another command .*: ccp-train --resume .*alone$"):
        alone.check_trained_by(processes=True)


def test_the_best_step_that_an_older_checkpoint_names_stays_too(tmp_path: Path) -> None:
    """Or the run could not go on from it, where the newest is damaged."""
    checkpoints = Checkpoints(tmp_path, config("checkpoints.keep=2", "checkpoints.keep_every=12").checkpoints)
    for step in range(4, 28, 4):
        checkpoints.at(step).mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000028.part").mkdir()  # being written
    checkpoints.prune([8, 24])
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {f"step-000000{step}" for step in ("08", "12", "20", "24", "28.part")}
    assert checkpoints.latest() == checkpoints.at(24)


def of_all_classes_of_two_ranks() -> None:
    """Of two classes on one rank and one on the other, as one process with the three would see them."""
    rank = dist.get_rank()
    mine = SubProblem(
        index=1, step=5, lam=0.1, radius_mean=[1.0, 4.0][rank], radius_max=[2.0, 4.0][rank],
        previous_radius_mean=None, spread=[0.5, 2.0][rank], previous_spread=[3.0, 0.0][rank],
        classes_kept=1, milliseconds=[7.0, 6.0][rank],
    )  # fmt: skip
    got = of_all_classes(mine, [2, 1][rank], Communicator())
    assert got == SubProblem(
        index=1, step=5, lam=0.1, radius_mean=pytest.approx(2.0), radius_max=4.0, previous_radius_mean=None,
        spread=pytest.approx(1.0), previous_spread=pytest.approx(2.0), classes_kept=2, milliseconds=7.0,
    )  # fmt: skip


def what_ranks_agree_on(folder: Path) -> None:
    wrong_settings(folder)
    of_all_classes_of_two_ranks()


def test_what_ranks_agree_on(tmp_path: Path) -> None:
    """What is wrong, told on all of them and said by one, before a folder is made; what is known of the proxies."""
    on_ranks(2, what_ranks_agree_on, tmp_path)


def every_loss() -> None:
    """As sensible flags ask for it: within the batch, to proxies in plain training and with CCP, rows of either."""
    train = images("train")
    for name, preset in PRESETS.items():
        for anchor in ("sample", "proxy"):
            ways = [["method=ccp"], ["method=plain", "loss.proxies_per_class=2"]]
            ways += [] if preset.needs_proxies else [["method=plain"]]
            for way in ways:
                options = [f"loss.name={name}", f"loss.options.anchor={anchor}", "ccp.warm_start=0.05", *way]
                learner = DistributedLearner(config(*options), train, 1.0)
                learner.connect("ddp")
                before = learner.proxies.proxies.detach().clone()
                losses = [learner.train_step(step) for step in range(2)]
                every = learner.proxies.comm.gather_integers(
                    [round(1e9 * x) for x in losses], before.device, ""
                )
                assert every[0] == every[1], options
                assert all(0 < abs(x) < 1e3 for x in losses), (options, losses)
                assert learner.loss.options["anchor"] == anchor
                moves = way != ["method=plain"]
                assert bool((learner.proxies.proxies != before).any()) == moves, options


def test_every_loss_in_both_anchorings() -> None:
    on_ranks(2, every_loss)


def warmed_up(kind: str) -> None:
    """Proxies alone at first, then all: step by step the network of one process, also if it is saved meanwhile."""
    chosen = config(
        "method=plain", "loss.name=proxy_nca", "model.frozen_norms=true", f"optimizer.name={kind}"
    )
    train = images("train")
    alone, learner = Learner(chosen, train), DistributedLearner(chosen, train, 1.0)
    learner.connect("ddp")
    with torch.no_grad():
        proxies = learner.proxies
        proxies.proxies.copy_(alone.criterion.proxies[proxies.begin : proxies.end])
    start = {name: p.detach().clone() for name, p in alone.model.named_parameters()}
    assert learner.warm_up == alone.optimization.warm_up == 9
    for step in range(14):
        assert learner.train_step(step) == pytest.approx(alone.train_step(), rel=1e-4)
        for name, p in learner.model.named_parameters():
            assert torch.equal(p, start[name]) == (step < 9 or not p.requires_grad)
            torch.testing.assert_close(p, alone.model.get_parameter(name), rtol=1e-3, atol=1e-5)
        if step == 4:
            network_state(learner.model, learner.of_network)


@pytest.mark.parametrize("kind", ["adam", "radam"])
def test_a_warm_up_is_that_of_one_process(kind: str) -> None:
    on_ranks(2, warmed_up, kind)
