"""The planner's figures against what is counted and measured."""

from __future__ import annotations

import re
import resource

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks

import ccp_fast.functional as F
from ccp_fast.distributed import ShardedProxies, traced
from ccp_fast.distributed.planner import Setup, memory_of, messages_of, plan_step

# Function and options of registered losses.
FUNCTIONS = {
    "proxy_nca": (F.proxy_nca, {}),
    "soft_triple": (F.soft_triple, {}),
    "triplet": (F.triplet, {}),
    "proxy_anchor": (F.proxy_anchor, {}),
    "contrastive_l2": (F.contrastive, {"anchor": "proxy"}),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
}


def setup_of(loss: str, **sizes: int) -> Setup:
    rows = loss in ("proxy_anchor", "contrastive_l2")
    return Setup(
        loss=loss, proxy_rows=rows, proxy_bytes=4, embedding_bytes=4, parameters=0, activations=0,
        on_gpu=False, **sizes,
    )  # fmt: skip


def count_messages(ranks: int) -> None:
    for loss, (function, options) in FUNCTIONS.items():
        for classes, batch, dim in ((10, 4, 8), (1001, 7, 33)):
            proxies = ShardedProxies(classes, 3, dim)
            embeddings = torch.randn(batch, dim, requires_grad=True)
            with traced() as log:
                function(embeddings, proxies, torch.arange(batch), **options).backward()
            setup = setup_of(loss, classes=classes, proxies=3, dim=dim, ranks=ranks, batch=batch)
            plan = [(m.kind, m.name, m.bytes) for m in messages_of(setup) if "network" not in m.name]
            assert plan == [tuple(m) for m in log], loss


def test_messages_are_those_counted() -> None:
    on_ranks(2, count_messages, 2)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("rate", [1.0, 0.25])
def test_tensors_have_the_sizes_planned(name: str, rate: float) -> None:
    proxies = ShardedProxies(1000, 3, 16, sample_rate=rate)
    optimizer = OPTIMIZERS[name]([proxies.proxies])
    if rate < 1:
        proxies.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        F.proxy_nca(torch.randn(5, 16), proxies, torch.arange(5)).backward()
        sample = proxies._row_sparse.pending
        held = [proxies.proxies, proxies.proxies.grad, sample, sample.grad if sample is not None else None]
        held += [x for p in (proxies.proxies, sample) if p is not None for x in optimizer.state[p].values()]
        before_step = sum(x.numel() * x.element_size() for x in held if x is not None and x.dim() == 3)
        optimizer.step()
    setup = setup_of("proxy_nca", classes=1000, proxies=3, dim=16, ranks=1, batch=5)
    setup = Setup(**{**setup.__dict__, "optimizer": name, "sample_rate": rate})
    planned = sum(p.bytes for p in memory_of(setup) if "proxies" in p.name or "sampled" in p.name)
    assert planned == before_step


def measure_memory(ranks: int, classes: int, dim: int) -> None:
    """Growth of the process over two steps of Adam."""
    batch = 64
    torch.set_num_threads(1)
    warm = ShardedProxies(10, 1, dim)
    F.proxy_nca(
        torch.randn(batch, dim, requires_grad=True), warm, torch.zeros(batch, dtype=torch.int64)
    ).backward()
    torch.optim.Adam([warm.proxies]).step()
    dist.barrier()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    proxies = ShardedProxies(classes, 1, dim)
    optimizer = torch.optim.Adam([proxies.proxies], fused=True)
    for _ in range(2):
        embeddings = torch.randn(batch, dim, requires_grad=True)
        F.proxy_nca(embeddings, proxies, torch.arange(batch)).backward()
        optimizer.step()
        optimizer.zero_grad()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    planned = plan_step(
        setup_of("proxy_nca", classes=classes, proxies=1, dim=dim, ranks=ranks, batch=batch)
    ).total
    print(f"rank {dist.get_rank()}: planned {planned / 1e6:.0f} MB, measured {grown / 1e6:.0f} MB")
    assert abs(grown - planned) < 0.05 * planned + 10e6


def test_memory_is_what_the_processes_take() -> None:
    on_ranks(2, measure_memory, 2, 400_000, 64)


@pytest.mark.slow
def test_a_million_classes() -> None:
    on_ranks(2, measure_memory, 2, 1_000_000, 64)


def test_the_limit_is_where_the_plan_stops_fitting() -> None:
    setup = Setup(classes=10_000_000, proxies=4, dim=512, ranks=64)
    plan = plan_step(setup)
    most = plan.most_classes
    fits = [
        sum(p.bytes for p in memory_of(Setup(classes=n, proxies=4, dim=512, ranks=64)))
        for n in (most, most + 64)
    ]
    assert fits[0] <= setup.memory < fits[1]
    fewest = plan.fewest_ranks
    for ranks, is_enough in ((fewest, True), (fewest - 1, False)):
        total = sum(p.bytes for p in memory_of(Setup(classes=10_000_000, ranks=ranks)))
        assert (total <= setup.memory) == is_enough
    assert plan_step(Setup(classes=1, activations=10**12)).fewest_ranks == 0


def test_wrong_numbers_are_told() -> None:
    for wrong, message in (
        ({"classes": 0}, "classes: expected at least 1, got 0"),
        ({"classes": 5, "sample_rate": 0.0}, "sample_rate: expected above 0"),
        ({"classes": 5, "optimizer": "lion"}, "optimizer: expected one of sgd, momentum, adam"),
        ({"classes": 5, "loss": "hinge"}, "loss: expected one of contrastive_l2"),
        ({"classes": 5, "bandwidth": 0.0}, "bandwidth: expected a number above 0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            plan_step(Setup(**wrong))


def test_the_command_prints_it() -> None:
    typer = pytest.importorskip("typer", reason="ccp-train needs the extra [train]")
    from typer.testing import CliRunner

    from ccp_fast.cli.plan import plan

    app = typer.Typer()
    app.command()(plan)
    result = CliRunner().invoke(app, ["--classes", "10_000_000", "--gpus", "64"])
    assert result.exit_code == 0, result.output
    for text in (
        "optimizer state of proxies",
        "gradients of embeddings",
        "fewest GPUs for 10,000,000 classes",
    ):
        assert text in result.output
    result = CliRunner().invoke(app, ["--classes", "many"])
    assert result.exit_code == 2
    assert "--classes: expected a whole number" in result.output
