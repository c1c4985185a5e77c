"""The lines that start many processes: for two hosts, tried as two torchruns on this one, and for Slurm."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("pydantic", reason="ccp-train needs the extra [train]")
from test_distributed_failure import free_port
from test_distributed_trainer import ENVIRONMENT, SCRIPT, TORCHRUN, settings, summary_of

SLURM = Path(__file__).parents[1] / "examples" / "distributed.slurm"


@pytest.mark.slow
def test_two_torchruns_meet(tmp_path: Path) -> None:
    """The line for two hosts, the same on both; their networks, and what else two machines are, are not tried."""
    meet = ["--nnodes", "2", "--nproc-per-node", "2", "--rdzv-endpoint", f"localhost:{free_port()}"]
    local = ["--local-addr", "localhost"]  # this machine may not find itself by its name
    options = settings("method=ccp", "steps=8")
    hosts = [
        subprocess.Popen(
            [*TORCHRUN, *meet, *local, SCRIPT, "--out", "run", "--network", "fsdp", *options],
            cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        for host in hosts:
            _, errors = host.communicate(timeout=200)
            assert host.returncode == 0, errors
    finally:
        for host in hosts:
            host.kill()
            host.communicate()
    assert summary_of(tmp_path / "run")["processes"] == 4


def test_the_slurm_script_asks_for_what_there_is(tmp_path: Path) -> None:
    """bash finds no fault; what `srun` is to start on each node are options that torchrun and the example know."""
    from torch.distributed.run import get_args_parser

    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    for name, script in (
        ("scontrol", "[ \"$*\" = 'show hostnames node[3-6]' ] && printf 'node3\\nnode4\\nnode5\\nnode6\\n'"),
        ("srun", 'printf "%s\\n" "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_NODELIST": "node[3-6]",
        "SLURM_JOB_NUM_NODES": "4",
        "SLURM_JOB_ID": "77",
        "SLURM_SUBMIT_DIR": "/where",
    }
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(SLURM), "--steps", "5"],
        check=True, capture_output=True, text=True, env={**os.environ, **slurm, "PATH": path},
    )  # fmt: skip
    started = done.stdout.splitlines()
    assert started[0] == "torchrun"
    options = get_args_parser().parse_args(started[1:])
    assert (options.nnodes, options.nproc_per_node, options.rdzv_id) == ("4", "8", "77")
    assert (options.rdzv_backend, options.rdzv_endpoint) == ("c10d", "node3:29500")
    assert options.training_script == "examples/distributed.py"
    wanted = [line.split()[1] for line in SLURM.read_text().splitlines() if line.startswith("#SBATCH")]
    assert "--nodes=4" in wanted
    assert "--ntasks-per-node=1" in wanted  # a torchrun on each
    assert f"--gpus-per-node={options.nproc_per_node}" in wanted
    asked = [option for option in options.training_script_args if option.startswith("--")]
    assert asked == ["--network", "--checkpoint", "--steps"]
    text = (SLURM.parent / "distributed.py").read_text()
    assert all(f'"{option}"' in text for option in asked)
