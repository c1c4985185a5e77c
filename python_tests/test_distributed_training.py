"""Trainings over several ranks: losses, weights and proxies step by step as those of one process."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import ccp_fast.functional as F
from ccp_fast.distributed import ShardedLoss, ShardedProxies, traced

CLASSES, PROXIES, INPUTS, DIM, STEPS = 13, 2, 6, 8, 50


def make_network(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(INPUTS, 16), nn.Tanh(), nn.Linear(16, DIM)).to(dtype)


def batches(ranks: int, dtype: torch.dtype) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Of each step, each rank's samples and labels: uneven, and in turn one rank without any."""
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        sizes = torch.randint(1, 7, (ranks,), generator=generator)
        if ranks > 1:
            sizes[step % (2 * ranks) // 2] = 0
        inputs = [
            torch.randn(int(n), INPUTS, generator=generator, dtype=torch.float64).to(dtype) for n in sizes
        ]
        labels = [torch.randint(0, CLASSES, (int(n),), generator=generator) for n in sizes]
        yield inputs, labels


def train(
    network: nn.Module,
    loss: nn.Module,
    proxies: nn.Parameter,
    ranks: int,
    rank: int | None,
    dtype: torch.dtype,
) -> list[float]:
    """rank None: one process with all samples. The proxies learn beside the network, as a group of their own."""
    optimizer = torch.optim.AdamW(
        [{"params": list(network.parameters())}, {"params": [proxies], "lr": 3e-2}], lr=1e-2
    )
    values = []
    for inputs, labels in batches(ranks, dtype):
        x = torch.cat(inputs) if rank is None else inputs[rank]
        y = torch.cat(labels) if rank is None else labels[rank]
        embeddings = network(x)
        value = loss(embeddings, y) + 0.1 * loss.pairs(embeddings, y)  # type: ignore[operator]
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(value.detach()))
    return values


def compare(ranks: int, wrapper: str, name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    rank = dist.get_rank()
    plain = make_network(dtype)
    alone = dist.new_group([rank], use_local_synchronization=True)
    start = ShardedProxies(CLASSES, PROXIES, DIM, alone, dtype=dtype)
    expected = train(
        plain, ShardedLoss(getattr(F, name), start, **options), start.proxies, ranks, None, dtype
    )

    network = make_network(dtype)
    if wrapper == "ddp":
        network = DistributedDataParallel(network)
    else:
        fully_shard(network, mesh=init_device_mesh("cpu", (ranks,)))
    sharded = ShardedProxies(CLASSES, PROXIES, DIM, dtype=dtype)
    got = train(
        network, ShardedLoss(getattr(F, name), sharded, **options), sharded.proxies, ranks, rank, dtype
    )

    tolerance = 1e-10 if dtype == torch.float64 else 2e-3
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        sharded.proxies, start.proxies[sharded.begin : sharded.end], rtol=tolerance, atol=tolerance
    )
    for mine, want in zip(network.parameters(), plain.parameters(), strict=True):
        whole = mine.full_tensor() if isinstance(mine, DTensor) else mine
        torch.testing.assert_close(whole, want, rtol=tolerance, atol=tolerance)


LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("proxy_nca", {}),
    ("margin_softmax", {"scale": 16.0, "margin": 0.3, "kind": "cosface"}),
    ("soft_triple", {}),
    ("multi_similarity", {"beta": 10.0}),
    ("proxy_anchor", {"alpha": 8.0}),
    ("contrastive", {"reduction": "anchor_mean", "distance": "cosine", "normalize": "unit"}),
    ("triplet", {"reduction": "anchor_mean", "margin": 0.3, "normalize": "unit"}),
]


def several(ranks: int, wrapper: str, names: list[str], dtype: torch.dtype) -> None:
    for name, options in LOSSES:
        if name in names:
            compare(ranks, wrapper, name, options, dtype)


def test_fifty_steps_are_those_of_one_process() -> None:
    on_ranks(2, several, 2, "ddp", ["proxy_nca", "proxy_anchor", "triplet"], torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_fifty_steps_of_every_loss(wrapper: str, ranks: int) -> None:
    names = [name for name, _ in LOSSES]
    on_ranks(ranks, several, ranks, wrapper, names, torch.float64)
    on_ranks(ranks, several, ranks, wrapper, names, torch.float32)


def count_messages(dim: int) -> None:
    """Kinds, purposes and bytes of one step are the same for ten classes and a hundred thousand."""
    for name, options in (*LOSSES, ("lifted_structure", {"variant": "anchor"})):
        logs = []
        for classes in (10, 100_000):
            proxies = ShardedProxies(classes, PROXIES, dim)
            embeddings = torch.randn(5 + dist.get_rank(), dim, requires_grad=True)
            labels = torch.arange(len(embeddings))
            with traced() as log:
                getattr(F, name)(embeddings, proxies, labels, **options).backward()
            logs.append(log)
        assert logs[0] == logs[1], name
        small = [m for m in logs[0] if m.name in ("row states", "loss and rows")]
        if name in ("proxy_nca", "margin_softmax", "soft_triple", "multi_similarity", "lifted_structure"):
            assert len(small) == 2, name
            assert sum(m.bytes for m in small) < 100 * 2 * 6 * 8
            others = {m.name for m in logs[0]} - {"row states", "loss and rows", "centre spread"}
            assert others == {"batch sizes", "batch", "gradients of embeddings"}


def test_messages_do_not_grow_with_the_number_of_classes() -> None:
    on_ranks(2, count_messages, 16)


def weak_scaling(ranks: int, folder: Path) -> None:
    """As many classes and samples on every rank, however many ranks there are."""
    for name, options in LOSSES:
        proxies = ShardedProxies(50 * ranks, PROXIES, DIM)
        embeddings = torch.randn(6, DIM, requires_grad=True)
        with traced() as log:
            getattr(F, name)(embeddings, proxies, torch.arange(6) * ranks, **options).backward()
        if dist.get_rank() == 0:
            (folder / f"{name}{ranks}").write_text(json.dumps(log))


def test_weak_scaling_by_messages_and_bytes(tmp_path: Path) -> None:
    """With the ranks, the number of messages stays, and each is of so many numbers a sample of the whole batch."""
    for ranks in (2, 3, 4):
        on_ranks(ranks, weak_scaling, ranks, tmp_path)
    for name, _ in LOSSES:
        logs = {n: json.loads((tmp_path / f"{name}{n}").read_text()) for n in (2, 3, 4)}
        for n in (3, 4):
            assert [row[:2] for row in logs[n]] == [row[:2] for row in logs[2]], name
            for (_, purpose, bytes_of_two), (_, _, bytes_now) in zip(logs[2], logs[n], strict=True):
                fixed = purpose == "centre spread"  # one number
                assert 2 * bytes_now == (2 if fixed else n) * bytes_of_two, (name, purpose)
