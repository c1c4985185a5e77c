"""Sampled classes: who takes part, what an optimizer step leaves alone, and by how much the loss is another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import one_thread  # noqa: F401
from ranks import on_ranks
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast.distributed import ShardedProxies

CLASSES, PROXIES, DIM = 40, 2, 6
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, fused=True),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
}


def samples(seed: int, count: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return torch.randn(count, DIM, generator=generator, dtype=torch.float64), labels


def make(rate: float, **options: Any) -> ShardedProxies:
    return ShardedProxies(CLASSES, PROXIES, DIM, sample_rate=rate, dtype=torch.float64, **options)


def states_of(optimizer: torch.optim.Optimizer, proxies: ShardedProxies) -> dict[str, Tensor]:
    """With the proxies themselves, copied."""
    state = {k: v for k, v in optimizer.state[proxies.proxies].items() if v.shape == proxies.proxies.shape}
    return {name: x.detach().clone() for name, x in {**state, "proxies": proxies.proxies}.items()}


@pytest.mark.parametrize("negatives", ["random", "hard"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_not_sampled_does_not_move(name: str, negatives: str) -> None:
    """Nor do its momentum and decay; and what is sampled moves as in a step with these classes alone."""
    proxies = make(0.3, negatives=negatives)
    optimizer = OPTIMIZERS[name]([proxies.proxies])
    proxies.attach(optimizer)
    seen = torch.zeros(CLASSES, dtype=torch.bool)
    for step in range(6):
        embeddings, labels = samples(step)
        before = states_of(optimizer, proxies) if step else {"proxies": proxies.proxies.detach().clone()}
        F.proxy_nca(embeddings, proxies, labels).backward()
        assert proxies.proxies.grad is None
        sample = proxies._row_sparse.pending
        assert sample is not None
        rows = proxies._row_sparse._rows
        assert rows is not None
        assert len(rows) == 12  # 0.3 of 40
        assert set(labels.tolist()) <= set(rows.tolist())
        optimizer.step()
        optimizer.zero_grad()
        after = states_of(optimizer, proxies)
        others = torch.ones(CLASSES, dtype=torch.bool)
        others[rows] = False
        for key, value in before.items():
            assert torch.equal(after[key][others], value[others]), key
        assert (after["proxies"][rows] != before["proxies"][rows]).any(dim=2).all()
        seen |= ~others
    assert [p is proxies.proxies for p in optimizer.param_groups[0]["params"]] == [True]
    assert list(optimizer.state) in ([proxies.proxies], [])
    assert negatives == "hard" or seen.sum() > 30


def test_all_classes_sampled_is_the_dense_step() -> None:
    """Moments and decay included: the detour by the sample changes nothing."""
    results = []
    for rate in (1.0, 1 - 1e-12):  # the latter rounds up to all classes
        proxies = make(rate)
        optimizer = torch.optim.AdamW([proxies.proxies], lr=0.1)
        if rate < 1:
            proxies.attach(optimizer)
        for step in range(5):
            F.multi_similarity(*(x for x in _with(proxies, step))).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(states_of(optimizer, proxies))
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-12, atol=1e-12)


def _with(proxies: ShardedProxies, step: int) -> tuple[Tensor, ShardedProxies, Tensor]:
    embeddings, labels = samples(step)
    return embeddings, proxies, labels


def test_hard_negatives_are_the_nearest_classes() -> None:
    proxies = make(0.25, negatives="hard")
    proxies.attach(torch.optim.SGD([proxies.proxies], lr=0.1))
    embeddings, labels = samples(3, 4)
    F.proxy_nca(embeddings, proxies, labels).backward()
    unit = torch.nn.functional.normalize
    nearest = (unit(embeddings, dim=1) @ unit(proxies.proxies.detach(), dim=2).flatten(0, 1).T).amax(0)
    order = nearest.view(CLASSES, PROXIES).amax(1).argsort(descending=True).tolist()
    present = set(labels.tolist())
    expected = present | set([c for c in order if c not in present][: 10 - len(present)])
    rows = proxies._row_sparse._rows
    assert rows is not None
    assert set(rows.tolist()) == expected


def test_the_bias_is_as_documented() -> None:
    """A log-sum-exp over some negatives is below that over all, the nearer the more take part; a hinge's sum over
    negatives is, but for those in the batch, the rate times the whole on average."""
    embeddings, labels = samples(0)
    full = float(F.proxy_nca(embeddings, make(1.0), labels).detach())
    below = []
    for rate in (0.2, 0.5, 0.9):
        proxies = make(rate)
        proxies.attach(torch.optim.SGD([proxies.proxies], lr=0.0))
        values = []
        for _ in range(40):
            values.append(float(F.proxy_nca(embeddings, proxies, labels).detach()))
            assert values[-1] <= full
        below.append(full - sum(values) / len(values))
    assert below[0] > below[1] > below[2] > 0
    hard = make(0.2, negatives="hard")
    hard.attach(torch.optim.SGD([hard.proxies], lr=0.0))
    gap = full - float(F.proxy_nca(embeddings, hard, labels).detach())
    assert 0 < gap < below[0]  # the terms that count most are there

    options = {
        "distance": "cosine",
        "neg_margin": -1.0,
        "pos_margin": 2.0,
        "reduction": "sum",
        "normalize": "unit",
    }
    whole = make(1.0)
    all_negatives = float(F.contrastive(embeddings, whole, labels, **options).detach())
    keep = torch.zeros(CLASSES, dtype=torch.bool)
    keep[labels] = True
    with torch.no_grad():
        present = labels.unique()
        place = torch.searchsorted(present, labels)
        within = float(F.contrastive(embeddings, whole.proxies[present], place, **options))
    rate = 0.5
    proxies = make(rate)
    proxies.attach(torch.optim.SGD([proxies.proxies], lr=0.0))
    draws = [float(F.contrastive(embeddings, proxies, labels, **options).detach()) for _ in range(400)]
    share = (20 - len(present)) / (CLASSES - len(present))
    expected = within + share * (all_negatives - within)
    assert abs(sum(draws) / len(draws) - expected) < 0.02 * expected


def test_evaluation_and_no_grad_take_all_classes() -> None:
    proxies = make(0.3)
    embeddings, labels = samples(0)
    expected = F.proxy_nca(embeddings, make(1.0), labels).detach()
    with torch.no_grad():
        assert torch.equal(F.proxy_nca(embeddings, proxies, labels), expected)
    assert torch.equal(F.proxy_nca(embeddings, proxies.eval(), labels).detach(), expected)


def test_misuse_is_told() -> None:
    proxies = make(0.3)
    embeddings, labels = samples(0)
    with pytest.raises(RuntimeError, match=r"sample_rate: expected `attach"):
        F.proxy_nca(embeddings, proxies, labels)
    optimizer = torch.optim.SGD([proxies.proxies], lr=0.1)
    with pytest.raises(ValueError, match="optimizer: expected the proxies"):
        proxies.attach(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    proxies.attach(optimizer)
    with pytest.raises(RuntimeError, match="attach: expected one call"):
        proxies.attach(optimizer)
    F.proxy_nca(embeddings, proxies, labels).backward()
    with pytest.raises(RuntimeError, match="expected an optimizer step, or zero_grad"):
        F.proxy_nca(embeddings, proxies, labels)
    optimizer.zero_grad()  # a step left out, as GradScaler does
    before = proxies.proxies.detach().clone()
    F.proxy_nca(embeddings, proxies, labels).backward()
    assert torch.equal(proxies.proxies, before)
    for rate in (0.0, 1.5):
        with pytest.raises(ValueError, match="sample_rate: expected above 0"):
            make(rate)
    with pytest.raises(ValueError, match="negatives: expected"):
        make(0.5, negatives="easy")


def sampled_over_ranks() -> None:
    """The ranks' samples put together give one process's loss over these classes."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    proxies = make(0.3, averaged=False)
    proxies.attach(torch.optim.SGD([proxies.proxies], lr=0.1))
    embeddings, labels = samples(5, 9)
    own = slice(rank, None, ranks)
    for name, options in (("proxy_nca", {}), ("soft_triple", {}), ("contrastive", {"reduction": "mean"})):
        mine = embeddings[own].clone().requires_grad_()
        value = getattr(F, name)(mine, proxies, labels[own], **options)
        value.backward()
        sample, rows = proxies._row_sparse.pending, proxies._row_sparse._rows
        assert sample is not None
        assert rows is not None
        assert sample.grad is not None
        everyone: list[Any] = [None] * ranks
        dist.all_gather_object(everyone, (rows + proxies.begin, sample.detach(), sample.grad))
        classes = torch.cat([x[0] for x in everyone])
        whole = torch.cat([x[1] for x in everyone]).requires_grad_()
        order = torch.cat([labels[r::ranks] for r in range(ranks)])
        x = torch.cat([embeddings[r::ranks] for r in range(ranks)])
        expected = getattr(F, name)(x, whole, torch.searchsorted(classes, order), **options)
        expected.backward()
        torch.testing.assert_close(value.detach(), expected.detach(), rtol=1e-10, atol=1e-10)
        assert whole.grad is not None
        torch.testing.assert_close(torch.cat([x[2] for x in everyone]), whole.grad, rtol=1e-10, atol=1e-12)
        sample.grad = None


def test_sampling_over_ranks() -> None:
    on_ranks(3, sampled_over_ranks)
