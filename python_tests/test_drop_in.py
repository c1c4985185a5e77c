"""What docs/drop_in.md says of pytorch-metric-learning and of this package, each equality and each difference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers import one_thread, vectors  # noqa: F401
from pytorch_metric_learning import distances, miners, reducers
from pytorch_metric_learning import losses as peers
from pytorch_metric_learning.samplers import MPerClassSampler as PeerSampler
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.distributed import DistributedLossWrapper
from pytorch_metric_learning.utils.inference import CustomKNN
from ranks import on_ranks
from torch import Tensor, nn

import ccp_fast
from ccp_fast import functional, losses
from ccp_fast.distributed import ShardedProxies

C, D, COUNT = 4, 6, 13
DOCUMENT = Path(__file__).parents[1] / "docs" / "drop_in.md"


def with_proxies(peer: nn.Module, ours: losses.MetricLoss) -> tuple[nn.Module, losses.MetricLoss]:
    """As the document says to copy them."""
    assert ours.proxies is not None
    peer.proxies.data = vectors(C, D, seed=5)
    ours.proxies.data = peer.proxies.data[:, None].clone()
    return peer, ours


def with_matrix(name: str, peer: nn.Module, ours: losses.MetricLoss) -> tuple[nn.Module, losses.MetricLoss]:
    """The same for a matrix [D, C·K], the proxies of a class side by side."""
    assert ours.proxies is not None
    matrix = getattr(peer, name)
    matrix.data = vectors(*matrix.shape, seed=5)
    ours.proxies.data = matrix.data.t().reshape(ours.proxies.shape).clone()
    return peer, ours


class Swapped(nn.Module):
    """`memory(loss, e, y)` as `memory(e, y)`."""

    def __init__(self, memory: ccp_fast.CrossBatchMemory, loss: losses.MetricLoss) -> None:
        super().__init__()
        self.memory, self.loss = memory.double(), loss

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        value: Tensor = self.memory(self.loss, embeddings, labels)
        return value


EQUAL: dict[str, Callable[[], tuple[nn.Module, nn.Module]]] = {
    "ContrastiveLoss(p, n)": lambda: (
        peers.ContrastiveLoss(0.2, 1.1),
        losses.ContrastiveLoss(pos_margin=0.2, neg_margin=1.1, normalize="unit"),
    ),
    "ContrastiveLoss(p, n, distance=CosineSimilarity())": lambda: (
        peers.ContrastiveLoss(0.9, 0.1, distance=distances.CosineSimilarity()),
        losses.ContrastiveLoss(pos_margin=1 - 0.9, neg_margin=0.1, distance="cosine", normalize="unit"),
    ),
    "TripletMarginLoss(m)": lambda: (
        peers.TripletMarginLoss(0.3),
        losses.TripletLoss(margin=0.3, normalize="unit"),
    ),
    "TripletMarginLoss(m, reducer=MeanReducer())": lambda: (
        peers.TripletMarginLoss(0.3, reducer=reducers.MeanReducer()),
        losses.TripletLoss(margin=0.3, normalize="unit", reduction="mean"),
    ),
    "MultiSimilarityLoss(alpha, beta, base)": lambda: (
        peers.MultiSimilarityLoss(3, 20, 0.4),
        losses.MultiSimilarityLoss(alpha=3, beta=20, base=0.4),
    ),
    "LiftedStructureLoss(neg_margin=n, pos_margin=p)": lambda: (
        peers.LiftedStructureLoss(neg_margin=1.1, pos_margin=0.2),
        losses.LiftedStructureLoss(margin=1.1 - 0.2, normalize="unit"),
    ),
    "GeneralizedLiftedStructureLoss(neg_margin=n)": lambda: (
        peers.GeneralizedLiftedStructureLoss(neg_margin=1.1),
        losses.LiftedStructureLoss(margin=1.1, variant="anchor", normalize="unit"),
    ),
    "ProxyNCALoss(C, D, softmax_scale=s)": lambda: with_proxies(
        peers.ProxyNCALoss(C, D, softmax_scale=5), losses.ProxyNCALoss(C, D, temperature=1 / 5)
    ),
    "ProxyAnchorLoss(C, D, margin, alpha)": lambda: with_proxies(
        peers.ProxyAnchorLoss(C, D, 0.2, 16), losses.ProxyAnchorLoss(C, D, margin=0.2, alpha=16)
    ),
    "SoftTripleLoss(C, D, K, la=s, gamma=g, margin=m)": lambda: with_matrix(
        "fc",
        peers.SoftTripleLoss(C, D, 3, la=12, gamma=0.2, margin=0.05),
        losses.SoftTripleLoss(C, D, 3, scale=12, gamma=0.2, margin=0.05, tau=0),
    ),
    "NormalizedSoftmaxLoss(C, D, temperature=T)": lambda: with_matrix(
        "W",
        peers.NormalizedSoftmaxLoss(C, D, temperature=0.1),
        losses.MarginSoftmaxLoss(C, D, scale=1 / 0.1),
    ),
    "CosFaceLoss(C, D, margin=m, scale=s)": lambda: with_matrix(
        "W",
        peers.CosFaceLoss(C, D, margin=0.2, scale=20),
        losses.MarginSoftmaxLoss(C, D, kind="cosface", margin=0.2, scale=20),
    ),
    "ArcFaceLoss(C, D, margin=m, scale=s)": lambda: with_matrix(
        "W",
        peers.ArcFaceLoss(C, D, margin=20, scale=24),
        losses.MarginSoftmaxLoss(C, D, kind="arcface", margin=math.radians(20), scale=24),
    ),
    "SubCenterArcFaceLoss(num_classes=C, embedding_size=D, margin=m, scale=s, sub_centers=K)": lambda: (
        with_matrix(
            "W",
            peers.SubCenterArcFaceLoss(num_classes=C, embedding_size=D, margin=20, scale=24, sub_centers=3),
            losses.MarginSoftmaxLoss(C, D, 3, kind="arcface", margin=math.radians(20), scale=24),
        )
    ),
    "CrossBatchMemory(loss, D, size)": lambda: (
        peers.CrossBatchMemory(peers.TripletMarginLoss(0.3), D, 30),
        Swapped(
            ccp_fast.CrossBatchMemory(30, D, pair_weight=0), losses.TripletLoss(margin=0.3, normalize="unit")
        ),
    ),
}


def batch(seed: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(C, (COUNT,), generator=torch.Generator().manual_seed(seed))
    return vectors(COUNT, D, seed=seed).requires_grad_(), labels


@pytest.mark.parametrize("name", EQUAL)
def test_the_table_gives_equal_losses(name: str) -> None:
    assert f"`{name}`" in DOCUMENT.read_text()
    peer, ours = EQUAL[name]()
    for seed in range(4):
        x, labels = batch(seed)
        values = [loss(x, labels) for loss in (peer, ours)]
        torch.testing.assert_close(*values, rtol=1e-10, atol=1e-12)
        gradients = [torch.autograd.grad(value, x, retain_graph=True)[0] for value in values]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-11)
        if list(ours.parameters()):
            theirs, own = (
                torch.autograd.grad(value, list(loss.parameters()))[0]
                for value, loss in zip(values, (peer, ours), strict=True)
            )
            theirs = theirs if theirs.shape[-1] == D else theirs.t()
            torch.testing.assert_close(theirs.reshape(own.shape), own, rtol=1e-9, atol=1e-11)


def test_references_go_by_name() -> None:
    (x, labels), (r, ref_labels) = batch(0), batch(1)
    peer, ours = EQUAL["MultiSimilarityLoss(alpha, beta, base)"]()
    values = [loss(x, labels, ref_emb=r, ref_labels=ref_labels) for loss in (peer, ours)]
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ours(x, labels, r, ref_labels), values[1])
    with pytest.raises(ValueError, match="unpack"):  # r is taken for a miner's pairs
        peer(x, labels, r, ref_labels)


def test_a_miners_tuple_is_refused_by_name() -> None:
    (x, labels), (peer, ours) = batch(0), EQUAL["MultiSimilarityLoss(alpha, beta, base)"]()
    mined = miners.MultiSimilarityMiner()(x, labels)
    assert peer(x, labels, mined) > 0
    for call in (lambda: ours(x, labels, mined), lambda: ours(x, labels, ref_emb=mined)):
        with pytest.raises(ValueError, match=r"^indices_tuple: expected no miner's tuple, .* got one of 4; "):
            call()


def test_labels_are_int64() -> None:
    (x, labels), (peer, ours) = batch(0), EQUAL["MultiSimilarityLoss(alpha, beta, base)"]()
    torch.testing.assert_close(peer(x, labels.int()), ours(x, labels.int().long()), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"^labels: expected int64 of shape \[13\], got int32"):
        ours(x, labels.int())


def test_references_that_begin_with_the_batch() -> None:
    (x, labels), (r, other_labels) = batch(0), batch(1)
    everything, every_label = torch.cat([x.detach(), r.detach()]), torch.cat([labels, other_labels])
    peer, ours = EQUAL["MultiSimilarityLoss(alpha, beta, base)"]()
    pairs = lmu.get_all_pairs_indices(labels, every_label)
    pairs = lmu.remove_self_comparisons(pairs, torch.arange(COUNT), len(everything))
    expected = peer(x, labels, pairs, everything, every_label)
    torch.testing.assert_close(ours(x, labels, everything, every_label, exclude_self=True), expected)
    assert ours(x, labels, everything, every_label) != expected


def test_means_over_pairs_and_over_the_matrix() -> None:
    x, labels = batch(0)
    peer = peers.ContrastiveLoss(0.2, 1.1, reducer=reducers.MeanReducer())
    ours = losses.ContrastiveLoss(pos_margin=0.2, neg_margin=1.1, normalize="unit", reduction="mean")
    same = labels[:, None] == labels
    kinds = (
        losses.ContrastiveLoss(pos_margin=0.2, neg_margin=0, normalize="unit", reduction="sum"),
        losses.ContrastiveLoss(pos_margin=4, neg_margin=1.1, normalize="unit", reduction="sum"),
    )
    positives, negatives = (kind(x, labels) for kind in kinds)
    expected = positives / (same.sum() - COUNT) + negatives / (~same).sum()
    torch.testing.assert_close(peer(x, labels), expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(ours(x, labels), (positives + negatives) / COUNT**2)


def opposed() -> tuple[Tensor, Tensor, Tensor]:
    """A sample opposite to its proxy, near a wrong one, and another that is fine; proxies; labels. In float32."""
    x = torch.eye(4)[:2].clone()
    proxies = torch.stack([-x[0], x[0] + 0.01 * x[1], x[1]])
    return x.requires_grad_(), proxies, torch.tensor([0, 2])


def test_a_sample_opposite_to_its_proxy_is_not_dropped() -> None:
    x, proxies, labels = opposed()
    peer, ours = peers.ProxyNCALoss(3, 4, softmax_scale=32), losses.ProxyNCALoss(3, 4, temperature=1 / 32)
    peer.proxies.data, ours.proxies.data = proxies.clone(), proxies[:, None].clone()
    value = ours(x[:1], labels[:1])
    assert value.item() == pytest.approx(128, abs=0.01)
    assert ours(x, labels).item() == pytest.approx(64, abs=0.01)  # the mean of 128 and nearly 0
    gradient, to_proxies = torch.autograd.grad(value, [x, ours.proxies])
    assert gradient[0].norm() > 0.3
    assert to_proxies[1].norm() > 0.3
    dropped = peer(x, labels)
    assert dropped < 1e-6
    assert torch.autograd.grad(dropped, x)[0][0].norm() < 1e-6
    assert peer(x[:1], labels[:1]).isnan()


def test_a_label_without_a_proxy_is_an_error() -> None:
    x, labels = vectors(3, D).float(), torch.tensor([0, 1, 9])
    peer, ours = peers.ProxyNCALoss(C, D), losses.ProxyNCALoss(C, D)
    assert torch.equal(peer(x, labels), peer(x[:2], labels[:2]))
    with pytest.raises(RuntimeError, match=r"labels: expected"):
        ours(x, labels)


def test_defaults_that_differ() -> None:
    assert losses.ContrastiveLoss().options["neg_margin"] == 0.5
    assert peers.ContrastiveLoss().neg_margin == 1
    assert losses.ProxyNCALoss(C, D).options["temperature"] == 1 / 9
    assert peers.ProxyNCALoss(C, D).softmax_scale == 1

    assert losses.SoftTripleLoss(C, D).options["tau"] == 0.2
    ours = losses.MarginSoftmaxLoss(C, D).options
    assert (ours["kind"], ours["margin"], ours["scale"]) == ("none", None, 64)
    assert peers.ArcFaceLoss(C, D).margin == pytest.approx(math.radians(28.6))
    assert peers.CosFaceLoss(C, D).margin == 0.35
    assert peers.NormalizedSoftmaxLoss(C, D).temperature == 0.05


def test_weights_of_several_proxies_lie_class_by_class() -> None:
    """Or the copy above would mix classes: a sample upon a proxy is nearest to its own class in both."""
    peer, ours = EQUAL["SoftTripleLoss(C, D, K, la=s, gamma=g, margin=m)"]()
    for c in range(C):
        x = ours.proxies.data[c, 1][None]
        assert peer.get_logits(x).argmax() == c


HALF = {
    "ProxyNCALoss": (lambda: losses.ProxyNCALoss(C, D), "proxies"),
    "ProxyAnchorLoss": (lambda: losses.ProxyAnchorLoss(C, D), "proxies"),
    "SoftTripleLoss": (lambda: losses.SoftTripleLoss(C, D, 2), "fc"),
    "ArcFaceLoss": (lambda: losses.MarginSoftmaxLoss(C, D, kind="arcface"), "W"),
    "CosFaceLoss": (lambda: losses.MarginSoftmaxLoss(C, D, kind="cosface"), "W"),
    "NormalizedSoftmaxLoss": (lambda: losses.MarginSoftmaxLoss(C, D), "W"),
}


@pytest.mark.parametrize("name", HALF)
def test_half_precision_embeddings_leave_the_parameter_alone(name: str) -> None:
    x, labels = vectors(3, D).half().requires_grad_(), torch.tensor([0, 1, 2])
    make, matrix = HALF[name]
    ours, theirs = make(), getattr(peers, name)(C, D)
    before = ours.proxies.detach().clone()
    ours(x, labels).backward()
    assert ours.proxies.dtype == ours.proxies.grad.dtype == torch.float32
    assert torch.equal(ours.proxies, before)
    assert x.grad is not None
    assert x.grad.dtype == torch.float16
    assert getattr(theirs, matrix).dtype == torch.float32
    theirs(x, labels)
    assert getattr(theirs, matrix).dtype == torch.float16


def test_arcface_upon_its_proxy_has_a_gradient() -> None:
    """And opposite to it: the derivative of acos, which there is, has none."""
    peer, ours = EQUAL["ArcFaceLoss(C, D, margin=m, scale=s)"]()
    peer.W.data = ours.proxies.data[:, 0].t().clone()
    for sign in (1, -1):
        peer.W.data[:, 0] = torch.eye(D, dtype=torch.float64)[0]
        ours.proxies.data[0, 0] = peer.W.data[:, 0]
        x = sign * peer.W.data[:, :1].t().clone()
        theirs, own = (
            torch.autograd.grad(loss(x.requires_grad_(), torch.tensor([0])), x)[0] for loss in (peer, ours)
        )
        assert theirs.isnan().any()
        assert own.isfinite().all()
        assert own.abs().sum() > 0


def test_the_place_in_the_queue_is_saved() -> None:
    peer, ours = EQUAL["CrossBatchMemory(loss, D, size)"]()
    resumed_peer, resumed = EQUAL["CrossBatchMemory(loss, D, size)"]()
    for seed in range(2):
        peer(*batch(seed))
        ours(*batch(seed))
    resumed_peer.load_state_dict(peer.state_dict())
    resumed.load_state_dict(ours.state_dict())
    assert torch.equal(resumed(*batch(2)), ours(*batch(2)))
    assert (peer.queue_idx, resumed_peer.queue_idx) == (2 * COUNT, 0)
    assert resumed_peer(*batch(2)) != peer(*batch(2))


def test_a_batch_larger_than_the_memory() -> None:
    x, labels = batch(0)
    with pytest.raises(AssertionError):
        peers.CrossBatchMemory(peers.TripletMarginLoss(), D, COUNT - 1)(x, labels)
    loss = losses.TripletLoss(normalize="unit")
    memory = ccp_fast.CrossBatchMemory(COUNT - 1, D, pair_weight=0).double()
    torch.testing.assert_close(memory(loss, x, labels), loss.pairs(x, labels))
    assert memory.fill == COUNT - 1


# As it is by default, without faiss.
CALCULATOR = AccuracyCalculator(
    include=("precision_at_1",), k=1, knn_func=CustomKNN(distances.LpDistance(normalize_embeddings=False))
)


def test_large_labels_are_told_apart_in_retrieval() -> None:
    """Every sample's nearest is of the other class."""
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.01], [0.0, 1.0], [0.01, 1.0]])
    labels = torch.tensor([2**24, 2**24 + 1, 2**24, 2**24 + 1])
    theirs = CALCULATOR.get_accuracy(embeddings, labels)
    ours = ccp_fast.evaluation.retrieval(embeddings, labels, metrics=("precision_at_1",))
    assert (theirs["precision_at_1"], ours["precision_at_1"]) == (1, 0)


def test_embeddings_are_normalised_in_retrieval_unless_asked_otherwise() -> None:
    embeddings, labels = (
        torch.tensor([[1.0, 0.0], [9.0, 0.1], [1.0, 0.5], [9.0, 4.6]]),
        torch.tensor([0, 0, 1, 1]),
    )
    theirs = CALCULATOR.get_accuracy(embeddings, labels)
    ours = [
        ccp_fast.evaluation.retrieval(embeddings, labels, metrics=("precision_at_1",), **options)
        for options in ({}, {"normalize": None})
    ]
    assert theirs["precision_at_1"] == ours[1]["precision_at_1"] == 0
    assert ours[0]["precision_at_1"] == 1


def test_samplers() -> None:
    labels = torch.arange(5).repeat_interleave(6)
    theirs = list(PeerSampler(labels, 3, 12, length_before_new_iter=60))
    sampler = ccp_fast.samplers.MPerClassSampler(labels, 12 // 3, 3)
    for chosen in (theirs[:12], sampler.next_batch()):
        assert labels[torch.tensor(chosen)].unique(return_counts=True)[1].tolist() == [3] * 4
    resumed = ccp_fast.samplers.MPerClassSampler(labels, 12 // 3, 3)
    resumed.load_state_dict(sampler.state_dict())
    assert resumed.next_batch() == sampler.next_batch()
    epoch = ccp_fast.samplers.MPerClassSampler(labels, 12 // 3, 3, batches_per_epoch=60 // 12)
    assert sum(map(len, epoch)) == len(theirs)
    assert next(itertools.islice(sampler, 1000, None))  # without it there is no end


def test_nothing_is_moved_to_another_device() -> None:
    x, labels = torch.randn(4, D), torch.arange(4)
    with pytest.raises(ValueError, match=r"^labels: expected on cpu, the anchors' device, got meta"):
        losses.ContrastiveLoss()(x, labels.to("meta"))


def test_the_margin_of_positives_of_the_generalised_lifted_structure() -> None:
    x, labels = vectors(8, D), torch.arange(8) // 2
    peer = peers.GeneralizedLiftedStructureLoss(1.1, 0.2)
    ours = losses.LiftedStructureLoss(margin=1.1 - 0.2, variant="anchor", normalize="unit")
    torch.testing.assert_close(ours(x, labels), peer(x, labels), rtol=1e-10, atol=1e-12)
    labels[-1] = 9  # two anchors without positives
    assert peer(x, labels) - ours(x, labels) == pytest.approx(2 / 8 * 0.2, abs=1e-9)


def with_two_ranks() -> None:
    """Half a batch each; what a rank's proxies get, averaged as DDP does, beside one process's gradient."""
    x, labels = (tensor.detach()[:12] for tensor in batch(0))  # the wrapper gathers batches of one size alone
    x.requires_grad_()
    own = slice(0, 6) if dist.get_rank() == 0 else slice(6, 12)
    alone, _ = EQUAL["ProxyNCALoss(C, D, softmax_scale=s)"]()
    alone(x, labels).backward()
    peer, ours = EQUAL["ProxyNCALoss(C, D, softmax_scale=s)"]()
    assert isinstance(ours, losses.MetricLoss)
    mine = x.detach()[own].requires_grad_()
    DistributedLossWrapper(peer)(mine, labels[own]).backward()
    for gradient in (peer.proxies.grad, mine.grad):
        gradient /= 2
    dist.all_reduce(peer.proxies.grad)
    torch.testing.assert_close(mine.grad, x.grad[own])
    torch.testing.assert_close(peer.proxies.grad, 2 * alone.proxies.grad)

    proxies = ShardedProxies(C, 1, D, averaged=False, dtype=torch.float64)
    shard = slice(proxies.begin, proxies.end)
    proxies.proxies.data = ours.proxies.data[shard].clone()
    mine = x.detach()[own].requires_grad_()
    functional.proxy_nca(mine, proxies, labels[own], **ours.options).backward()
    torch.testing.assert_close(mine.grad, x.grad[own])
    torch.testing.assert_close(proxies.proxies.grad[:, 0], alone.proxies.grad[shard])


@pytest.mark.slow
def test_proxies_gradients_over_two_ranks() -> None:
    on_ranks(2, with_two_ranks)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "breaks"),
    [
        ("ProxyNCALoss(C, D, softmax_scale=s)", True),
        ("ArcFaceLoss(C, D, margin=m, scale=s)", True),
        ("MultiSimilarityLoss(alpha, beta, base)", True),
        ("SoftTripleLoss(C, D, K, la=s, gamma=g, margin=m)", False),
    ],
)
def test_graph_breaks(name: str, breaks: bool) -> None:
    counts = []
    for loss in EQUAL[name]():
        torch._dynamo.reset()
        counts.append(torch._dynamo.explain(loss)(*batch(0)).graph_break_count)
    assert (counts[0] >= 2, counts[1]) == (breaks, 0)
