"""Processes of one group on this machine, for tests of `ccp_fast.distributed`."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

# The server imports torch once; the processes it forks start in a moment.
multiprocessing.set_forkserver_preload(["torch", "ccp_fast.distributed", "ranks"])


def on_ranks(ranks: int, function: Callable[..., None], *args: Any, timeout: float = 120) -> None:
    """Run function(*args) in so many processes joined by gloo; what one raises is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _run, (ranks, str(Path(folder) / "store"), timeout, function, args), nprocs=ranks,
            start_method="forkserver",
        )  # fmt: skip


def _run(
    rank: int, ranks: int, store: str, timeout: float, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=timedelta(seconds=timeout)
    )
    try:
        function(*args)
        dist.barrier()  # a rank that leaves early closes connections that another is still opening
    finally:
        dist.destroy_process_group()
