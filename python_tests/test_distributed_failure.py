"""A rank that dies or hangs: the others stop and say what to do, and fewer ranks go on from the last checkpoint."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from test_distributed_checkpoint import Training, one_process

from ccp_fast.distributed import RankLost, clear_errors

STOPPED = 3


def train_until_it_fails(rank: int, folder: Path, how: str, timeout: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=3,
        timeout=timedelta(seconds=timeout),
    )
    training = Training("ddp")
    try:
        with clear_errors("training"):
            for number in range(10):
                if number == 4:
                    (folder / f"waits{rank}").touch()
                    if rank == 1:
                        if how == "dies":
                            os._exit(9)
                        time.sleep(600)
                training.step(number)
                if number == 2:
                    training.save(folder / "checkpoint", number)
    except RankLost as error:
        (folder / f"message{rank}").write_text(str(error))
        os._exit(STOPPED)


def go_on(folder: Path, expected: list[float]) -> None:
    training = Training("ddp")
    assert training.load(folder) == 2
    got = [training.step(number) for number in range(3, 8)]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("how", ["dies", pytest.param("hangs", marks=pytest.mark.slow)])
def test_the_others_stop_and_fewer_go_on(tmp_path: Path, how: str) -> None:
    context = multiprocessing.get_context("forkserver")
    timeout = 60 if how == "dies" else 8
    processes = [
        context.Process(target=train_until_it_fails, args=(rank, tmp_path, how, timeout)) for rank in range(3)
    ]
    for process in processes:
        process.start()
    try:
        for rank in (0, 2):
            processes[rank].join(100)
            assert processes[rank].exitcode == STOPPED
            message = (tmp_path / f"message{rank}").read_text()
            assert message.startswith(f"rank {rank}: a process of the group died or did not answer in time")
            assert "with as many or fewer processes, from its last checkpoint" in message
        waited = time.time() - (tmp_path / "waits0").stat().st_mtime
        assert waited < timeout + 20
    finally:
        for process in processes:
            process.kill()
            process.join()
    expected = one_process(8)[3:]
    on_ranks(2, go_on, tmp_path / "checkpoint", expected)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])


def start_ranks(folder: Path, ranks: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """`ccp-train distributed` without torchrun, which would end the others itself."""
    script = Path(__file__).parent / "distributed_training.py"
    address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(ranks)}
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    return [
        subprocess.Popen(
            [sys.executable, str(script), "--out", "run", *arguments],
            cwd=folder,
            env={**os.environ, **address, **own, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["ddp", "fsdp"])
def test_a_stopped_rank_ends_the_others_and_fewer_go_on(tmp_path: Path, network: str) -> None:
    """SIGSTOP: its connections stay, it answers nothing."""
    pytest.importorskip("pydantic", reason="ccp-train needs the extra [train]")
    from tiny_training import SETTINGS

    timeout = 6
    settings = [x for setting in (*SETTINGS, "steps=400", "method=ccp") for x in ("--set", setting)]
    ranks = start_ranks(tmp_path, 3, "--network", network, "--timeout", str(timeout), *settings)
    log = tmp_path / "run" / "metrics.jsonl"
    try:
        while not log.exists() or len(log.read_text().splitlines()) < 3:
            assert all(rank.poll() is None for rank in ranks), ranks[0].communicate()
            time.sleep(0.02)
        ranks[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        for number in (0, 2):
            _, errors = ranks[number].communicate(timeout=timeout + 30)
            assert ranks[number].returncode == STOPPED, errors
            assert time.monotonic() - began < timeout + 10
            said = [line for line in errors.splitlines() if not line.startswith("[")]  # [W...]: torch's own
            assert len(said) == 1, errors
            assert said[0].startswith(f"rank {number}: a process of the group died or did not answer in time")
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    before = log.read_text().splitlines()
    saved = max(int(path.name[5:]) for path in (tmp_path / "run" / "checkpoints").glob("step-????????"))
    kept = [line for line in before if json.loads(line)["step"] <= saved]

    # Shortened, to end soon.
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("steps: 400", f"steps: {saved + 8}"))
    for rank in start_ranks(tmp_path, 2, "--network", network, "--resume"):
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors
    rows = log.read_text().splitlines()
    assert rows[: len(kept)] == kept
    assert [json.loads(line)["step"] for line in rows[len(kept) :]] == [saved + 4, saved + 8]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["processes"] == 2


def test_an_error_of_ones_own_is_left_alone() -> None:
    with pytest.raises(RuntimeError, match=r"^something else$"), clear_errors("training"):
        raise RuntimeError("something else")
    with pytest.raises(RankLost, match="rank 0: a process of the group died"), clear_errors("training"):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:3841")
