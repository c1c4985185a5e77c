"""A checkpoint written by n ranks and read by m: the training goes on as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import ccp_fast
import ccp_fast.functional as F
from ccp_fast.distributed import (
    ShardedLoss,
    ShardedProxies,
    checkpoint,
    embed_own_pool,
    load_network_state,
    network_state,
)
from ccp_fast.samplers import ClassPoolSampler

pytest.importorskip("safetensors", reason="checkpoints are safetensors: pip install 'ccp-fast[train]'")

CLASSES, PROXIES, DIM = 11, 2, 4


class Training:
    """Network, proxies, an optimizer each."""

    def __init__(self, wrapper: str | None, shard_sizes: list[int] | None = None) -> None:
        torch.manual_seed(0)
        self.network: nn.Module = nn.Linear(3, DIM).double()
        if wrapper == "ddp":
            self.network = DistributedDataParallel(self.network)
        elif wrapper == "fsdp":
            fully_shard(self.network, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        self.proxies = ShardedProxies(
            CLASSES, PROXIES, DIM, dtype=torch.float64, shard_sizes=shard_sizes, averaged=wrapper is not None
        )
        self.of_network = torch.optim.Adam(self.network.parameters(), lr=1e-2)
        self.of_proxies = torch.optim.AdamW([self.proxies.proxies], lr=1e-2, amsgrad=True)

    def step(self, number: int) -> float:
        """The batch is split over however many ranks there are."""
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(12, 3, generator=generator, dtype=torch.float64)
        labels = torch.randint(0, CLASSES, (12,), generator=generator)
        own = slice(self.proxies.comm.rank, None, self.proxies.comm.size)
        value = F.proxy_nca(self.network(inputs[own]), self.proxies, labels[own])
        value.backward()
        for optimizer in (self.of_network, self.of_proxies):
            optimizer.step()
            optimizer.zero_grad()
        return float(value.detach())

    def save(self, folder: Path, number: int) -> None:
        others = network_state(self.network, self.of_network)
        checkpoint.save(folder, self.proxies, self.of_proxies, others, {"step": number})

    def load(self, folder: Path) -> int:
        others = network_state(self.network, self.of_network)
        numbers = checkpoint.load(folder, self.proxies, self.of_proxies, others)
        load_network_state(self.network, self.of_network, others)
        return int(numbers["step"])


def write(folder: Path, wrapper: str, shard_sizes: list[int] | None) -> None:
    training = Training(wrapper, shard_sizes)
    for number in range(4):
        training.step(number)
    training.save(folder, 3)
    training.step(4)
    training.save(folder, 4)  # an older one is replaced


def read(folder: Path, wrapper: str, expected: list[float]) -> None:
    training = Training(wrapper)
    assert training.load(folder) == 4
    got = [training.step(number) for number in range(5, 8)]
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def one_process(steps: int) -> list[float]:
    training = Training(None)
    return [training.step(number) for number in range(steps)]


@pytest.mark.parametrize("wrapper", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_ranks_may_be_others(tmp_path: Path, wrapper: str) -> None:
    expected = one_process(8)[5:]
    folder = tmp_path / "checkpoint"
    on_ranks(3, write, folder, wrapper, [5, 0, 6])
    assert sorted(p.suffix for p in folder.iterdir()) == [".safetensors"] * len(list(folder.iterdir()))
    for ranks in (2, 4):
        on_ranks(ranks, read, folder, wrapper, expected)


def test_what_is_no_checkpoint_is_told(tmp_path: Path) -> None:
    proxies = ShardedProxies(CLASSES, PROXIES, DIM)
    with pytest.raises(checkpoint.CheckpointError, match=r"expected the folder of a checkpoint"):
        checkpoint.load(tmp_path / "none", proxies)
    checkpoint.save(tmp_path / "one", proxies)
    other = ShardedProxies(CLASSES, PROXIES, DIM + 1)
    before = other.proxies.detach().clone()
    with pytest.raises(checkpoint.CheckpointError, match=r"expected ccp_fast.proxies of shape \[11, 2, 5\]"):
        checkpoint.load(tmp_path / "one", other)
    assert torch.equal(other.proxies, before)
    with pytest.raises(TypeError, match=r"others\.name: expected tensors"):
        checkpoint.save(tmp_path / "two", proxies, others={"name": "text"})
    for file in (tmp_path / "one").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(checkpoint.CheckpointError, match=r"one: expected whole files of a checkpoint"):
        checkpoint.load(tmp_path / "one", proxies)
    (tmp_path / "file").touch()
    with pytest.raises(checkpoint.CheckpointError, match=r"three: rank 0 could not write .* Not a directory"):
        checkpoint.save(tmp_path / "file" / "three", proxies)


def cannot_write(folder: Path) -> None:
    proxies = ShardedProxies(CLASSES, PROXIES, DIM)
    with pytest.raises(
        checkpoint.CheckpointError, match=r"^.*three: rank 0 could not write or read its part"
    ):
        checkpoint.save(folder / "file" / "three", proxies)


def test_what_one_rank_cannot_write_all_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    on_ranks(2, cannot_write, tmp_path)


def test_sampling_goes_on_with_the_next_draw(tmp_path: Path) -> None:
    def steps(proxies: ShardedProxies, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            generator = torch.Generator().manual_seed(number)
            labels = torch.randint(0, CLASSES, (3,), generator=generator)
            F.proxy_nca(torch.randn(3, DIM, generator=generator), proxies, labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    def make() -> tuple[ShardedProxies, torch.optim.Optimizer]:
        proxies = ShardedProxies(CLASSES, PROXIES, DIM, sample_rate=0.5)
        optimizer = torch.optim.AdamW([proxies.proxies], lr=0.1)
        proxies.attach(optimizer)
        return proxies, optimizer

    whole, optimizer = make()
    steps(whole, optimizer, range(3))
    checkpoint.save(tmp_path / "checkpoint", whole, optimizer)
    steps(whole, optimizer, range(3, 6))
    resumed, optimizer = make()
    checkpoint.load(tmp_path / "checkpoint", resumed, optimizer)
    steps(resumed, optimizer, range(3, 6))
    assert torch.equal(resumed.proxies, whole.proxies)


class CcpTraining:
    """CCP with evaluations in between, whose metric is a made-up function of the step."""

    def __init__(self, wrapper: str | None) -> None:
        torch.manual_seed(0)
        network = nn.Linear(3, DIM).double()
        self.forward: nn.Module = network
        if wrapper == "ddp":
            self.forward = DistributedDataParallel(network)
        elif wrapper == "fsdp":
            fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
        self.network = network
        self.proxies = ShardedProxies(
            CLASSES, PROXIES, DIM, dtype=torch.float64, averaged=wrapper is not None
        )
        self.ccp = ccp_fast.AlternatingProjections(
            network,
            ShardedLoss(F.contrastive, self.proxies, neg_margin=0.9),
            pool_size=3,
            lam=0.1,
            patience=2,
        )
        self.of_network = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.5)
        self.of_proxies = torch.optim.SGD([self.proxies.proxies], lr=0.05)
        self.ccp.attach(self.of_network, self.of_proxies)
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(44, 3, generator=generator, dtype=torch.float64)
        self.labels = torch.arange(44) % CLASSES
        self.sampler = ClassPoolSampler(self.labels, 3)

    def run(self, steps: range) -> list[float]:
        values = []
        for step in steps:
            if self.ccp.due:
                self.ccp.project(
                    lambda k: embed_own_pool(
                        self.network, self.inputs.__getitem__, self.sampler.pool(k), self.proxies
                    )
                )
            comm = self.proxies.comm
            own = torch.arange(step, step + 20)[comm.rank :: comm.size] % 44
            value = self.ccp.loss(self.forward(self.inputs[own]), self.labels[own])
            value.backward()
            for optimizer in (self.of_network, self.of_proxies):
                optimizer.step()
                optimizer.zero_grad()
            values.append(float(value.detach()))
            with torch.no_grad():
                self.forward(self.inputs[:4])  # an evaluation, behind which FSDP2 leaves its weights whole
            self.ccp.update([0.1, 0.3, 0.2, 0.2, 0.25, 0.22][step % 6])
        return values


def write_ccp(folder: Path, wrapper: str) -> None:
    training = CcpTraining(wrapper)
    training.run(range(7))
    others = network_state(training.network, training.of_network)
    checkpoint.save(folder, training.proxies, others=others, ccp=training.ccp)


def read_ccp(folder: Path, wrapper: str, expected: list[float]) -> None:
    training = CcpTraining(wrapper)
    others = network_state(training.network, training.of_network)
    checkpoint.load(folder, training.proxies, others=others, ccp=training.ccp)
    load_network_state(training.network, training.of_network, others)
    torch.testing.assert_close(training.run(range(7, 14)), expected, rtol=1e-10, atol=1e-10)
    assert training.ccp.restore_best() == 0.3


@pytest.mark.parametrize(("writer", "reader"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_ccp_goes_on_with_other_ranks(tmp_path: Path, writer: str, reader: str) -> None:
    expected = CcpTraining(None).run(range(14))[7:]
    folder = tmp_path / "checkpoint"
    on_ranks(2, write_ccp, folder, writer)
    on_ranks(3, read_ccp, folder, reader, expected)
