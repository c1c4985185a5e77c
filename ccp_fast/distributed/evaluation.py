"""Retrieval over the embeddings of all ranks: each rank ranks its share of the queries, among all references."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import torch
import torch.distributed as dist
from torch import Tensor

from ccp_fast._checks import Normalize
from ccp_fast.distributed.batch import Batch, gather_batch
from ccp_fast.distributed.communication import Communicator
from ccp_fast.evaluation import normalized_mutual_information, retrieval_per_query
from ccp_fast.evaluation._clusters import KMeans, check_kmeans
from ccp_fast.evaluation._metrics import RANKING, means

BEAT = 1.0  # seconds
_NO_CLUSTERS = "nmi: the first rank could not cluster the embeddings and says why"


@torch.no_grad()
def retrieval(
    query: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    metrics: Iterable[str] = RANKING,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    normalize: Normalize = "unit",
    kmeans: KMeans = "scikit-learn",
    seed: int = 0,
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """`ccp_fast.evaluation.retrieval` of the samples of all ranks together, each rank giving its own.

    Every rank gets the same numbers, those of one process with all samples in the order of the ranks, to the bit.
    Each holds all embeddings and ranks the neighbours of its own queries. For "nmi" the first rank clusters, and the
    others wait as long as it takes, whatever the timeout of the group: but a rank that is lost meanwhile is noticed.

    Args:
        query: [m, D], this rank's, also none.
        labels: [m] int64.
        reference: [n, D], this rank's; None on all ranks: the queries of all ranks, each leaving out itself.
        reference_labels: [n] int64.
        metrics, ks, normalize, kmeans, seed: as there.
        group: of the ranks; None: all of them.

    Raises on every rank what one process would raise; where k-means fails, RuntimeError on all but the first.
    """
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    comm = Communicator(group)
    queries = gather_batch(comm, query, labels)
    references = None
    if reference is not None:
        if reference_labels is None:
            raise ValueError("reference_labels: expected with reference, got None")
        references = gather_batch(comm, reference, reference_labels)
    if "nmi" in wanted:
        _check_kmeans(comm, kmeans, queries.embeddings.device)
    own = queries.own(comm.rank)
    values = retrieval_per_query(
        queries.embeddings,
        queries.labels,
        None if references is None else references.embeddings,
        None if references is None else references.labels,
        [name for name in wanted if name != "nmi"],
        ks=ks,
        normalize=normalize,
        rows=torch.arange(own.start, own.stop, device=query.device),
    )
    relevant = values.pop("num_relevant")  # of all queries, on every rank
    mine = torch.stack([value[own] for value in values.values()], dim=1) if values else query.new_zeros(0, 0)
    everyone = comm.gather_rows(mine, queries.sizes, "metrics of queries")
    result = means({**{name: everyone[:, i] for i, name in enumerate(values)}, "num_relevant": relevant})
    if "nmi" in wanted:
        result["nmi"] = _nmi(comm, queries, normalize, kmeans, seed)
    return result


def _check_kmeans(comm: Communicator, kmeans: KMeans, device: torch.device) -> None:
    """Whether the first rank can cluster, before any work."""
    problem: Exception | None = None
    try:
        if comm.rank == 0:
            check_kmeans(kmeans)
    except (ModuleNotFoundError, ValueError) as error:
        problem = error
    failed = comm.gather(torch.tensor([problem is not None], dtype=torch.uint8, device=device), "clustering")
    if problem is not None:
        raise problem
    if failed[0]:
        raise RuntimeError(_NO_CLUSTERS)


def _nmi(comm: Communicator, queries: Batch, normalize: Normalize, kmeans: KMeans, seed: int) -> float:
    """By a thread of the first rank; the ranks exchange a message a second until it is there."""
    threads = torch.get_num_threads()

    def cluster() -> float:
        torch.set_num_threads(threads)  # OpenMP counts for each thread that calls it
        return normalized_mutual_information(
            queries.embeddings, queries.labels, normalize=normalize, kmeans=kmeans, seed=seed
        )

    executor = ThreadPoolExecutor(1)
    found = executor.submit(cluster) if comm.rank == 0 else None
    executor.shutdown(wait=False)  # a rank that is lost is told at once
    there = value = 0.0
    while not there:
        mine = torch.zeros(2, dtype=torch.float64, device=queries.embeddings.device)  # is it there, and what
        if found is not None and wait([found], timeout=BEAT).done:
            mine[0] = 1
            mine[1] = torch.nan if found.exception() is not None else found.result()
        there, value = comm.gather(mine, "clustering")[0].tolist()
    if found is not None:
        return found.result()
    if math.isnan(value):
        raise RuntimeError(_NO_CLUSTERS)
    return value
