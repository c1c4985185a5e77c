"""Losses against sharded proxies: value and gradients are those of one process, whoever has what."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast.distributed import ShardedLoss, ShardedProxies

# Name of the function, its options.
LOSSES: list[tuple[str, dict[str, Any]]] = [
    ("contrastive", {"pos_margin": 0.3, "neg_margin": 0.9}),
    ("contrastive", {"distance": "cosine", "pos_margin": 0.1, "neg_margin": 0.2}),
    ("triplet", {"margin": 0.2}),
    ("multi_similarity", {"beta": 10.0}),
    ("proxy_nca", {}),
    ("proxy_nca", {"variant": "original"}),
    ("proxy_anchor", {"alpha": 8.0}),
    ("lifted_structure", {"variant": "anchor"}),
    ("margin_softmax", {"scale": 16.0, "margin": 0.35, "kind": "cosface"}),
    ("margin_softmax", {"scale": 16.0, "margin": 0.5, "kind": "arcface"}),
    ("soft_triple", {}),
]
REDUCTIONS = ("mean", "active_mean", "anchor_mean", "sum", "none")
CLASSES, PROXIES, DIM = 11, 3, 7


class Layout(NamedTuple):
    """Who has what."""

    batches: list[int]  # samples of each rank
    shards: list[int] | None  # classes of each rank


LAYOUTS = {
    1: [Layout([9], None)],
    2: [Layout([5, 4], None), Layout([0, 9], [10, 1]), Layout([70, 3], [0, 11]), Layout([0, 0], None)],
    3: [Layout([4, 0, 5], [7, 0, 4])],
    4: [Layout([1, 4, 0, 7], [1, 5, 3, 2])],
}


class Result(NamedTuple):
    value: Tensor
    grad_embeddings: Tensor
    grad_proxies: Tensor


def inputs(samples: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(samples)
    embeddings = torch.randn(samples, DIM, generator=generator, dtype=torch.float64) * 0.6
    proxies = torch.randn(CLASSES, PROXIES, DIM, generator=generator, dtype=torch.float64) * 0.6
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    return embeddings.to(dtype), proxies.to(dtype), labels


def weights(count: int, dtype: torch.dtype) -> Tensor:
    """Of the values of rows, so that each has a gradient of its own."""
    return torch.linspace(0.5, 2.0, max(count, 1), dtype=dtype)[:count]


def one_process(name: str, options: dict[str, Any], layout: Layout, dtype: torch.dtype) -> Result:
    embeddings, proxies, labels = inputs(sum(layout.batches), dtype)
    embeddings.requires_grad_()
    proxies.requires_grad_()
    value = getattr(F, name)(embeddings, proxies, labels, **options)
    (value * weights(len(value), dtype) if value.dim() else value).sum().backward()
    assert embeddings.grad is not None
    assert proxies.grad is not None
    return Result(value.detach(), embeddings.grad, proxies.grad)


def this_rank(name: str, options: dict[str, Any], layout: Layout, dtype: torch.dtype) -> None:
    """Compares this rank's part with that of one process."""
    rank = dist.get_rank()
    want = one_process(name, options, layout, dtype)
    embeddings, everyone, labels = inputs(sum(layout.batches), dtype)
    begin = sum(layout.batches[:rank])
    own = slice(begin, begin + layout.batches[rank])
    mine = embeddings[own].clone().requires_grad_()
    proxies = ShardedProxies(CLASSES, PROXIES, DIM, shard_sizes=layout.shards, averaged=False, dtype=dtype)
    classes = slice(proxies.begin, proxies.end)
    with torch.no_grad():
        proxies.proxies.copy_(everyone[classes])
    value = getattr(F, name)(mine, proxies, labels[own], **options)
    rows = own
    if value.dim():
        if options.get("anchor", "proxy" if name == "proxy_anchor" else "sample") == "proxy":
            rows = slice(proxies.begin * PROXIES, proxies.end * PROXIES)
        (value * weights(len(want.value), dtype)[rows]).sum().backward()
    else:
        value.backward()
    assert mine.grad is not None
    assert proxies.proxies.grad is not None
    close(value.detach(), want.value[rows] if value.dim() else want.value, want.value)
    close(mine.grad, want.grad_embeddings[own], want.grad_embeddings)
    close(proxies.proxies.grad, want.grad_proxies[classes], want.grad_proxies)


def close(got: Tensor, want: Tensor, scale: Tensor) -> None:
    assert got.shape == want.shape
    assert torch.isfinite(got).all()
    rounding = 1e-10 if got.dtype == torch.float64 else 2e-5
    largest = float(scale.abs().max()) if scale.numel() else 0.0
    if got.numel():
        assert float((got - want).abs().max()) <= rounding * max(largest, 1e-3)


def every_loss(ranks: int, dtype: torch.dtype) -> None:
    for layout in LAYOUTS[ranks]:
        for name, options in LOSSES:
            for anchor in ("sample", "proxy"):
                for reduction in REDUCTIONS:
                    for normalize in ("unit", "ball"):
                        chosen = {**options, "anchor": anchor, "reduction": reduction, "normalize": normalize}
                        try:
                            this_rank(name, chosen, layout, dtype)
                        except AssertionError as error:
                            raise AssertionError(f"{name} {chosen} {layout}: {error}") from error


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_every_loss_is_that_of_one_process(ranks: int) -> None:
    """Values and all gradients, in float64."""
    on_ranks(ranks, every_loss, ranks, torch.float64)


def dynamic_assignment(ranks: int) -> None:
    for layout in LAYOUTS[ranks]:
        for options in (
            {"variant": "plus_plus"},
            {"variant": "original", "anchor": "proxy"},
            {"reduction": "sum"},
        ):
            this_rank("proxy_nca", {"assignment": "dynamic", **options}, layout, torch.float64)
    proxies = ShardedProxies(CLASSES, PROXIES, DIM)
    with pytest.raises(ValueError, match=r'reduction: expected a sum or mean with assignment="dynamic"'):
        F.proxy_nca(
            torch.ones(2, DIM), proxies, torch.zeros(2).long(), assignment="dynamic", reduction="none"
        )


def test_dynamic_assignment_is_that_of_one_process() -> None:
    on_ranks(3, dynamic_assignment, 3)


def lower_precision(ranks: int) -> None:
    """float32 to rounding; bfloat16 embeddings beside float32 proxies to theirs."""
    layout = LAYOUTS[ranks][0]
    for name, options in LOSSES:
        this_rank(name, {**options, "reduction": "sum"}, layout, torch.float32)
    rank = dist.get_rank()
    embeddings, everyone, labels = inputs(sum(layout.batches), torch.float32)
    half = embeddings.bfloat16()
    begin = sum(layout.batches[:rank])
    own = slice(begin, begin + layout.batches[rank])
    proxies = ShardedProxies(CLASSES, PROXIES, DIM, shard_sizes=layout.shards, averaged=True)
    with torch.no_grad():
        proxies.proxies.copy_(everyone[proxies.begin : proxies.end])
    mine = half[own].clone().requires_grad_()
    F.proxy_nca(mine, proxies, labels[own]).backward()
    whole, all_proxies = half.clone().requires_grad_(), everyone.clone().requires_grad_()
    F.proxy_nca(whole, all_proxies, labels).backward()
    assert mine.grad is not None
    assert whole.grad is not None
    assert mine.grad.dtype == torch.bfloat16
    # Averaged over the ranks afterwards, hence times their number. Every rank's share is rounded, and the sum.
    torch.testing.assert_close(mine.grad.float() / ranks, whole.grad[own].float(), rtol=0.02, atol=0.02 * 0.2)
    assert all_proxies.grad is not None
    assert proxies.proxies.grad is not None
    torch.testing.assert_close(
        proxies.proxies.grad, all_proxies.grad[proxies.begin : proxies.end], rtol=1e-4, atol=1e-6
    )


def test_lower_precision() -> None:
    on_ranks(3, lower_precision, 3)


def kernels_one_by_one() -> None:
    """As on a GPU, where the first kernel's result travels while the second runs."""
    from ccp_fast.distributed import proxies as module

    whole = module.RankWork
    module.RankWork = lambda **kwargs: whole(**{**kwargs, "overlap": True})  # type: ignore[misc, assignment]
    for name, options in LOSSES:
        for anchor in ("sample", "proxy"):
            this_rank(name, {**options, "anchor": anchor}, LAYOUTS[2][1], torch.float64)


def test_overlapped_backward() -> None:
    on_ranks(2, kernels_one_by_one)


def order_of_events(overlap: bool) -> None:
    """On a GPU the embeddings' gradients are on their way before the proxies' kernel starts, and waited for after."""
    from ccp_fast.distributed import loss as module
    from ccp_fast.distributed import proxies as of_proxies

    events: list[str] = []
    part, kernels = of_proxies.RankWork, module.ops.backward

    class Communicator(module.Communicator):
        def scatter_sum_rows(self, x: Tensor, sizes: Any, name: str) -> Any:
            events.append("sent")
            wait = super().scatter_sum_rows(x, sizes, name)
            return lambda: (events.append("waited for"), wait())[1]

    def backward(*args: Any) -> tuple[Tensor, Tensor]:
        names = [name for name, wanted in zip(("embeddings", "proxies"), args[-2:], strict=True) if wanted]
        events.append(" and ".join(names))
        return kernels(*args)

    of_proxies.RankWork = lambda **kwargs: part(**{**kwargs, "overlap": overlap})  # type: ignore[misc, assignment]
    module.ops.backward = backward
    proxies = ShardedProxies(CLASSES, PROXIES, DIM)
    proxies.comm = Communicator()
    F.proxy_nca(torch.randn(4, DIM, requires_grad=True), proxies, torch.arange(4)).backward()
    beside = ["embeddings", "sent", "proxies", "waited for"]
    assert events == (beside if overlap else ["embeddings and proxies", "sent", "waited for"])


@pytest.mark.parametrize("overlap", [True, False])
def test_what_overlaps(overlap: bool) -> None:
    on_ranks(2, order_of_events, overlap)


def misuse() -> None:
    rank = dist.get_rank()
    proxies = ShardedProxies(CLASSES, PROXIES, DIM)
    with pytest.raises(
        ValueError, match=r"labels: expected values in \[0, 11\), the classes of all ranks, got 11"
    ):
        F.proxy_nca(torch.ones(1, DIM), proxies, torch.tensor([11 * rank]))  # of one rank, told on both
    with pytest.raises(ValueError, match=r"embeddings: expected torch.float32 of 7 components on every rank"):
        F.proxy_nca(torch.ones(1, DIM + rank), proxies, torch.tensor([0]))
    with pytest.raises(ValueError, match="shard_sizes: expected 2 numbers of classes that add up to 11"):
        ShardedProxies(CLASSES, PROXIES, DIM, shard_sizes=[5, 5])
    with pytest.raises(ValueError, match="reference_labels: expected None"):
        F.proxy_nca(torch.ones(1, DIM), proxies, torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match="exclude_self: expected False"):
        F.proxy_nca(torch.ones(1, DIM), proxies, torch.tensor([0]), exclude_self=True)
    loss = ShardedLoss(F.contrastive, proxies)
    assert loss.normalize == "ball"
    assert [name for name, _ in loss.named_parameters()] == ["proxies"]
    with pytest.raises(ValueError, match="ref_emb: expected None, the sharded proxies"):
        loss(torch.ones(1, DIM), torch.tensor([0]), torch.ones(1, DIM), torch.tensor([0]))
    with pytest.raises(ValueError, match="reduction: expected a sum or mean for a loss of all ranks"):
        ShardedLoss(F.contrastive, proxies, reduction="none").pairs(torch.ones(1, DIM), torch.tensor([0]))


def test_misuse_is_told_on_every_rank() -> None:
    on_ranks(2, misuse)


def test_first_proxies_do_not_depend_on_who_has_them() -> None:
    whole = ShardedProxies(3000, 2, 4)
    on_ranks(2, same_proxies, whole.proxies.detach())
    assert abs(float(whole.proxies.detach().std()) - 0.5) < 0.01
    assert not torch.equal(whole.proxies, ShardedProxies(3000, 2, 4, seed=1).proxies)


def same_proxies(whole: Tensor) -> None:
    for sizes in (None, [2999, 1], [1024, 1976]):
        part = ShardedProxies(3000, 2, 4, shard_sizes=sizes)
        assert torch.equal(part.proxies, whole[part.begin : part.end])
