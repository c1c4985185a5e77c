"""Retrieval over the embeddings of all ranks: each rank ranks its share of the queries, among all references."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ccp_fast.distributed.batch import gather_batch
from ccp_fast.distributed.communication import Communicator
from ccp_fast.evaluation import retrieval_per_query
from ccp_fast.evaluation._fixed_point import Normalize
from ccp_fast.evaluation._metrics import means


@torch.no_grad()
def retrieval(
    query: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    metrics: Iterable[str] = ("precision_at_1", "r_precision", "map_at_r", "recall_at_k"),
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    normalize: Normalize = "unit",
    group: dist.ProcessGroup | None = None,
) -> dict[str, float]:
    """`ccp_fast.evaluation.retrieval` of the samples of all ranks together, each rank giving its own.

    Every rank gets the same numbers, those of one process with all samples in the order of the ranks, to the bit.
    Each holds all embeddings and ranks the neighbours of its own queries. "nmi" is not among the metrics: k-means is
    not sharded.

    Args:
        query: [m, D], this rank's, also none.
        labels: [m] int64.
        reference: [n, D], this rank's; None on all ranks: the queries of all ranks, each leaving out itself.
        reference_labels: [n] int64.
        metrics, ks, normalize: as there.
        group: of the ranks; None: all of them.
    """
    wanted = [metrics] if isinstance(metrics, str) else list(metrics)
    if "nmi" in wanted:
        raise ValueError('metrics: "nmi" is not sharded over ranks; ask ccp_fast.evaluation.retrieval for it')
    comm = Communicator(group)
    queries = gather_batch(comm, query, labels)
    references = None
    if reference is not None:
        if reference_labels is None:
            raise ValueError("reference_labels: expected with reference, got None")
        references = gather_batch(comm, reference, reference_labels)
    own = queries.own(comm.rank)
    values = retrieval_per_query(
        queries.embeddings,
        queries.labels,
        None if references is None else references.embeddings,
        None if references is None else references.labels,
        wanted,
        ks=ks,
        normalize=normalize,
        rows=torch.arange(own.start, own.stop, device=query.device),
    )
    relevant = values.pop("num_relevant")  # of all queries, on every rank
    mine = torch.stack([value[own] for value in values.values()], dim=1) if values else query.new_zeros(0, 0)
    everyone = comm.gather_rows(mine, queries.sizes, "metrics of queries")
    return means({**{name: everyone[:, i] for i, name in enumerate(values)}, "num_relevant": relevant})
