"""The reference losses against pytorch-metric-learning, on data where the hinges are open."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import one_thread, vectors  # noqa: F401
from pytorch_metric_learning import distances, losses, reducers
from torch import Tensor

from ccp_fast import reference

M, C, D = 7, 3, 5
LABELS = torch.tensor([0, 0, 2, 1, 1, 0, 2])

PEERS: dict[str, tuple[torch.nn.Module, Callable[[Tensor, Tensor], Tensor]]] = {
    "contrastive": (
        losses.ContrastiveLoss(pos_margin=0.2, neg_margin=1.1),
        lambda x, y: reference.contrastive(x, None, y, pos_margin=0.2, neg_margin=1.1, normalize="unit"),
    ),
    "contrastive_raw": (
        losses.ContrastiveLoss(neg_margin=3, distance=distances.LpDistance(normalize_embeddings=False)),
        lambda x, y: reference.contrastive(x, None, y, neg_margin=3, normalize=None),
    ),
    "contrastive_cosine": (
        losses.ContrastiveLoss(pos_margin=0.9, neg_margin=0.1, distance=distances.CosineSimilarity()),
        lambda x, y: reference.contrastive(
            x, None, y, distance="cosine", pos_margin=0.1, neg_margin=0.1, normalize="unit"
        ),
    ),
    "triplet": (
        losses.TripletMarginLoss(margin=0.3),
        lambda x, y: reference.triplet(x, None, y, margin=0.3, normalize="unit"),
    ),
    "triplet_mean": (
        losses.TripletMarginLoss(margin=0.3, reducer=reducers.MeanReducer()),
        lambda x, y: reference.triplet(x, None, y, margin=0.3, normalize="unit", reduction="mean"),
    ),
    "multi_similarity": (
        losses.MultiSimilarityLoss(alpha=3, beta=20, base=0.4),
        lambda x, y: reference.multi_similarity(x, None, y, alpha=3, beta=20, base=0.4),
    ),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PEERS)
def test_equals_pytorch_metric_learning(name: str, seed: int) -> None:
    peer, ours = PEERS[name]
    x = vectors(13, D, seed=seed).requires_grad_()
    y = torch.randint(4, (13,), generator=torch.Generator().manual_seed(seed))
    assert_same(peer(x, y), ours(x, y), x)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["proxy_nca", "proxy_anchor"])
def test_proxy_losses_equal_pytorch_metric_learning(name: str, seed: int) -> None:
    peer = {
        "proxy_nca": losses.ProxyNCALoss(C, D, softmax_scale=5),
        "proxy_anchor": losses.ProxyAnchorLoss(C, D, margin=0.2, alpha=16),
    }[name]
    proxies = peer.proxies.data = vectors(C, D, seed=seed + 9)
    x = vectors(M, D, seed=seed).requires_grad_()
    ours = {
        "proxy_nca": lambda: reference.proxy_nca(x, proxies[:, None], LABELS, temperature=0.2),
        "proxy_anchor": lambda: reference.proxy_anchor(x, proxies[:, None], LABELS, margin=0.2, alpha=16),
    }[name]()
    assert_same(peer(x, LABELS), ours, x)


def assert_same(a: Tensor, b: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    grads = [torch.autograd.grad(y, inputs) for y in (a, b)]
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)
