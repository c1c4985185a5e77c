"""Sharded proxies under torchrun: DDP or FSDP2, sampled classes, a checkpoint that other numbers of ranks go on from.

    torchrun --nproc-per-node 2 examples/distributed.py --steps 300
    torchrun --nproc-per-node 4 examples/distributed.py --network fsdp --sample-rate 0.25 --checkpoint run

Two hosts, the same line on both, with a port that is free on the first:

    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint FIRST_HOST:29500 examples/distributed.py

With GPUs it takes NCCL and one GPU a process, else gloo. Started again with the same --checkpoint it goes on behind the
last step that was saved, whatever the number of processes.
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from own_trainer import make_network
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ccp_fast import functional as F
from ccp_fast.data import glyphs
from ccp_fast.distributed import (
    ShardedLoss,
    ShardedProxies,
    checkpoint,
    clear_errors,
    load_network_state,
    network_state,
    retrieval,
)
from ccp_fast.samplers import MPerClassSampler

DIM = 64


class Training:
    """What learns, and its state."""

    def __init__(self, kind: str, sample_rate: float, classes: int, device: torch.device) -> None:
        torch.manual_seed(0)  # the same weights on every rank
        network = make_network(DIM).to(device)
        if kind == "fsdp":
            fully_shard(network, mesh=init_device_mesh(device.type, (dist.get_world_size(),)))
            self.network: nn.Module = network
        else:
            self.network = DistributedDataParallel(network)
        self.proxies = ShardedProxies(classes, 1, DIM, sample_rate=sample_rate, device=device)
        self.loss = ShardedLoss(F.proxy_nca, self.proxies)
        self.of_network = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        self.of_proxies = torch.optim.Adam([self.proxies.proxies], lr=1e-2)
        if sample_rate < 1:
            self.proxies.attach(self.of_proxies)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """This rank's part of a batch; the loss is that of the whole."""
        loss = self.loss(self.network(images), labels)
        loss.backward()
        for optimizer in (self.of_network, self.of_proxies):
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def save(self, folder: Path, step: int) -> None:
        """All ranks together."""
        others = network_state(self.network, self.of_network)
        checkpoint.save(folder, self.proxies, self.of_proxies, others, {"step": step})

    def load(self, folder: Path) -> int:
        """The number of steps done."""
        others = network_state(self.network, self.of_network)  # to read into
        numbers = checkpoint.load(folder, self.proxies, self.of_proxies, others)
        load_network_state(self.network, self.of_network, others)
        return int(numbers["step"])


@torch.no_grad()
def map_at_r(network: nn.Module, device: torch.device) -> float:
    """On the test classes, each rank embedding and ranking its share of the samples."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    test = glyphs("test")
    network.eval()
    embeddings = network(test.images[rank::ranks].to(device).float() / 255)
    network.train()
    return retrieval(embeddings, test.labels[rank::ranks].to(device), metrics=("map_at_r",))["map_at_r"]


def main(steps: int, kind: str, sample_rate: float, folder: Path | None) -> float:
    """Train, and return MAP@R on the test classes."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    train = glyphs("train")
    images, labels = train.images.float() / 255, train.labels
    sampler = MPerClassSampler(labels, classes_per_batch=32, samples_per_class=4)
    training = Training(kind, sample_rate, train.num_classes, device)
    begin = training.load(folder) if folder is not None and folder.exists() else 0

    with clear_errors("training"):
        for step in range(begin, steps):
            own = torch.tensor(sampler.batch(step))[rank::ranks]
            training.step(images[own].to(device), labels[own].to(device))
            if folder is not None and step % 100 == 99:
                training.save(folder, step + 1)
        return map_at_r(training.network, device)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--network", choices=("ddp", "fsdp"), default="ddp")
    parser.add_argument("--sample-rate", type=float, default=1.0)
    parser.add_argument("--checkpoint", type=Path)
    a = parser.parse_args()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(timeout=timedelta(minutes=5))
    result = main(a.steps, a.network, a.sample_rate, a.checkpoint)
    if dist.get_rank() == 0:
        print(f"MAP@R on 500 classes never seen: {result:.3f}")
    dist.barrier()  # nobody leaves while another still needs its connections
    dist.destroy_process_group()
