"""One training step with ten million classes in two processes of this machine, without a GPU.

    python examples/ten_million_classes.py

It needs 11 GB: proxies, gradients and two moments of Adam, 2.6 GB each, half of them in each process. --classes 1000000
takes a tenth. Each process prints the planner's figure beside what it has taken.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing

import ccp_fast.functional as F
from ccp_fast.distributed import ShardedProxies
from ccp_fast.distributed.planner import Setup, plan_step


def step(rank: int, ranks: int, store: str, classes: int, dim: int, batch: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    network = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(32, dim))
    proxies = ShardedProxies(classes, 1, dim)
    optimizer = torch.optim.Adam([*network.parameters(), proxies.proxies], fused=True)
    made = time.perf_counter()

    generator = torch.Generator().manual_seed(rank)
    labels = torch.randint(0, classes, (batch,), generator=generator)
    loss = F.proxy_nca(network(torch.randn(batch, 32, generator=generator)), proxies, labels)
    loss.backward()
    differentiated = time.perf_counter()
    optimizer.step()
    done = time.perf_counter()

    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    plan = plan_step(
        Setup(
            classes=classes, proxies=1, dim=dim, ranks=ranks, batch=batch, embedding_bytes=4,
            parameters=33 * dim, activations=0, on_gpu=False,
        )
    )  # fmt: skip
    print(
        f"rank {rank}: classes {proxies.begin:,} to {proxies.end - 1:,}, loss {float(loss.detach()):.4f}; made in "
        f"{made - began:.1f} s, loss and gradients {differentiated - made:.1f} s, Adam {done - differentiated:.1f} s; "
        f"memory planned {plan.total / 1e9:.2f} GB, taken {grown / 1e9:.2f} GB"
    )
    dist.barrier()  # nobody leaves while another still needs its connections
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--ranks", type=int, default=2)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        arguments = (a.ranks, store, a.classes, a.dim, a.batch)
        torch.multiprocessing.start_processes(step, arguments, nprocs=a.ranks, start_method="spawn")


if __name__ == "__main__":
    main()
