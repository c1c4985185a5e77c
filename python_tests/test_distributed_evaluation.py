"""Retrieval and the choice of proxies over ranks: to the bit what one process gets."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ccp_fast
import ccp_fast.functional as F
from ccp_fast import evaluation
from ccp_fast.distributed import ShardedLoss, ShardedProxies, embed_own_pool, retrieval
from ccp_fast.losses import ContrastiveLoss
from ccp_fast.samplers import ClassPoolSampler

CLASSES, PROXIES, DIM, SAMPLES = 9, 2, 5, 60


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % CLASSES
    return torch.randn(SAMPLES, 4, generator=generator), labels[torch.randperm(SAMPLES, generator=generator)]


def own_part(x: Tensor, sizes: list[int]) -> Tensor:
    return x.split(sizes)[dist.get_rank()]


def evaluate(sizes: list[int], reference_sizes: list[int]) -> None:
    embeddings, labels = data()
    embeddings[7] = embeddings[3]  # a tie
    whole = evaluation.retrieval(embeddings, labels)
    assert retrieval(own_part(embeddings, sizes), own_part(labels, sizes)) == whole
    others, other_labels = embeddings.flip(0) + 0.1, labels.flip(0)
    for normalize in ("unit", "ball"):
        whole = evaluation.retrieval(
            embeddings,
            labels,
            others,
            other_labels,
            ("map_at_r", "recall_at_k"),
            ks=(1, 3),
            normalize=normalize,
        )
        got = retrieval(
            own_part(embeddings, sizes), own_part(labels, sizes),
            own_part(others, reference_sizes), own_part(other_labels, reference_sizes),
            ("map_at_r", "recall_at_k"), ks=(1, 3), normalize=normalize,
        )  # fmt: skip
        assert got == whole


def cluster(sizes: list[int], seconds: float) -> None:
    """By one rank, which takes so long."""
    embeddings, labels = data()
    from ccp_fast.distributed import evaluation as module

    plain, module.BEAT = module.normalized_mutual_information, 0.1

    def slow(*args: Any, **options: Any) -> float:
        time.sleep(seconds)
        return plain(*args, **options)

    module.normalized_mutual_information = slow
    own = own_part(embeddings, sizes), own_part(labels, sizes)
    for normalize in ("unit", "ball"):
        whole = plain(embeddings, labels, normalize=normalize)
        assert retrieval(*own, metrics=["nmi", "map_at_r"], normalize=normalize)["nmi"] == whole
        module.normalized_mutual_information = plain

    def fails(*args: Any, **options: Any) -> float:
        raise ModuleNotFoundError("nmi: needs scikit-learn")

    module.normalized_mutual_information = fails
    expected = ModuleNotFoundError if dist.get_rank() == 0 else RuntimeError
    with pytest.raises(expected, match=r"^nmi: "):
        retrieval(*own, metrics=["nmi"])

    # Told before the first query is ranked, and by the first rank, which is the one that clusters.
    if dist.get_rank() == 0:
        module.check_kmeans = fails
    module.retrieval_per_query = None  # type: ignore[assignment]
    with pytest.raises(expected, match=r"^nmi: "):
        retrieval(*own, metrics=["map_at_r", "nmi"])


def make_network(sharded: bool) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, DIM))
    return (
        fully_shard(network, mesh=init_device_mesh("cpu", (dist.get_world_size(),))) if sharded else network
    )


def run_ccp(network: nn.Module, loss: Any, embed: Any, own: slice) -> ccp_fast.AlternatingProjections:
    """Two sub-problems of a few steps each."""
    inputs, labels = data()
    ccp = ccp_fast.AlternatingProjections(
        network, loss, pool_size=4, lam=0.1, pair_weight=0.1, project_every=4, patience=1
    )
    optimizer = torch.optim.SGD([{"params": list(network.parameters())}, {"params": [loss.proxies]}], lr=0.05)
    ccp.attach(optimizer)
    for step in range(12):
        if ccp.due or ccp.subproblem < 0:
            ccp.project(embed)
        batch = torch.arange(step, step + 20)[own] % SAMPLES
        ccp.loss(network(inputs[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return ccp


def alternating_projections(sharded: bool) -> None:
    inputs, labels = data()
    sampler = ClassPoolSampler(labels, 4, seed=0)
    options = {"neg_margin": 0.9, "reduction": "anchor_mean"}
    plain = make_network(False)
    loss = ContrastiveLoss(num_classes=CLASSES, dim=DIM, proxies_per_class=PROXIES, **options)
    alone = run_ccp(
        plain, loss, lambda k: ccp_fast.embed_pool(plain, inputs.__getitem__, sampler.pool(k), 5), slice(None)
    )
    network = make_network(sharded)
    proxies = ShardedProxies(CLASSES, PROXIES, DIM)
    calls = []

    def embed(k: int) -> Any:
        pool = embed_own_pool(network, inputs.__getitem__, sampler.pool(k), proxies, 5)
        calls.append(len(pool.embeddings))
        return pool

    wrapped = network if sharded else _Ddp(network)
    together = run_ccp(
        wrapped, ShardedLoss(F.contrastive, proxies, **options), embed,
        slice(dist.get_rank(), None, dist.get_world_size()),
    )  # fmt: skip
    assert sum(calls) < 3 * 4 * CLASSES  # a rank embeds its own classes alone
    assert together.subproblem == alone.subproblem == 2
    assert loss.proxies is not None
    torch.testing.assert_close(
        proxies.proxies, loss.proxies[proxies.begin : proxies.end], rtol=1e-5, atol=1e-5
    )
    for mine, whole in zip(wrapped.parameters(), plain.parameters(), strict=True):
        mine = mine.full_tensor() if hasattr(mine, "full_tensor") else mine
        torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-5)
    before = together.projection.state_dict()
    for name, value in before.items():
        if hasattr(value, "to_local"):  # a snapshot of FSDP2's shards is sharded as they are
            assert (
                value.to_local().numel()
                < dict(plain.named_parameters())[name.removeprefix("previous.")].numel()
            )


class _Ddp(nn.Module):
    """A network whose forward goes through DDP, with the names of the network itself."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._ddp = (nn.parallel.DistributedDataParallel(network),)

    def forward(self, x: Tensor) -> Tensor:
        return self._ddp[0](x)


def both(function: Any, *cases: tuple[Any, ...]) -> None:
    for case in cases:
        function(*case)


def test_retrieval_is_that_of_one_process() -> None:
    on_ranks(3, both, evaluate, ([20, 0, 40], [30, 29, 1]), ([1, 58, 1], [0, 60, 0]))


def test_clusters_are_those_of_one_process() -> None:
    pytest.importorskip("sklearn", reason="k-means needs scikit-learn")
    on_ranks(3, cluster, [20, 0, 40], 0.0)


@pytest.mark.slow
def test_clusters_are_waited_for_longer_than_anything_else() -> None:
    pytest.importorskip("sklearn", reason="k-means needs scikit-learn")
    on_ranks(2, cluster, [20, 40], 20.0, timeout=12)


def test_alternating_projections_are_those_of_one_process() -> None:
    on_ranks(2, both, alternating_projections, (False,), (True,))
