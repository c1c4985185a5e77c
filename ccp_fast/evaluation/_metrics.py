"""Retrieval metrics from the ranked neighbours of every query.

For a query with R references of its class (itself left out), y_i = 1 if its i-th neighbour is of its class:

- precision_at_1  y_1
- recall_at_K     1 if any of y_1..y_K is 1 (Oh Song et al., CVPR 2016, section 6)
- r_precision     (1/R) Σ_{i<=R} y_i
- map_at_r        (1/R) Σ_{i<=R} y_i · (1/i) Σ_{j<=i} y_j

R-precision and MAP@R: Musgrave et al., "A Metric Learning Reality Check", ECCV 2020.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ccp_fast._checks import Normalize

from . import _checks
from ._candidates import Backend
from ._clusters import KMeans, check_kmeans, normalized_mutual_information
from ._fixed_point import ordered_sum
from ._nearest import BlockSize, prepare, ranked_blocks

RANKING = ("precision_at_1", "r_precision", "map_at_r", "recall_at_k")
METRICS = (*RANKING, "nmi")


def retrieval(
    query: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    metrics: Iterable[str] = RANKING,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    normalize: Normalize = "unit",
    block_size: BlockSize = None,
    backend: Backend = "ccp_fast",
    kmeans: KMeans = "scikit-learn",
    seed: int = 0,
) -> dict[str, float]:
    """Retrieval metrics: the mean over all queries that have a reference of their class.

    Exact: as many neighbours are ranked as the query's class asks for, by (distance, index of the reference).
    Ties are thus resolved in the same way whatever the block size, the number of threads or the device.
    Streamed: memory is that of a tile of distances, or of candidates and their vectors, 24 bytes a row, and up
    to 128 MB a matrix where that saves time (twice that in fp64); never M x N.

    Args:
        query: [M, D] fp32, fp64, bf16 or fp16.
        labels: [M] int64, any values.
        reference: [N, D]; None: the queries themselves, each leaving out itself by its index (a duplicate
            stays).
        reference_labels: [N] int64, with ``reference``.
        metrics: some of ``METRICS``; by default all but "nmi", which clusters the queries by k-means: it needs
            scikit-learn (extra [train]), and with many classes it costs far more than all the others.
        ks: the K of recall_at_K; one larger than the number of references counts them all.
        normalize: "unit" v/‖v‖ (cosine similarity), "ball" v/max(1,‖v‖), or None; distances are Euclidean.
        block_size: as in ``nearest``.
        backend: as in ``nearest``.
        kmeans: as in ``normalized_mutual_information``.
        seed: of k-means.

    Returns:
        The metrics by name as fractions of one ("recall_at_k" as recall_at_1, recall_at_2, ...), and
        "num_queries", how many queries had a reference of their class and took part.

    Raises:
        ValueError: empty or non-finite embeddings, shapes, dtypes or devices that do not fit, an unknown
            metric, or no query with a reference of its class.
        ModuleNotFoundError: "nmi" without scikit-learn, "faiss" without faiss; nothing has been computed then.
    """
    wanted = _wanted(metrics)
    if "nmi" in wanted:
        check_kmeans(kmeans)
    names = [name for name in wanted if name != "nmi"]
    values = retrieval_per_query(
        query,
        labels,
        reference,
        reference_labels,
        names,
        ks=ks,
        normalize=normalize,
        block_size=block_size,
        backend=backend,
    )
    result = means(values)
    if "nmi" in wanted:
        result["nmi"] = normalized_mutual_information(
            query, labels, normalize=normalize, kmeans=kmeans, seed=seed
        )
    return result


def means(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Of what ``retrieval_per_query`` gives, over the queries that count, and "num_queries", how many these are.

    ValueError if there are metrics and no query counts.
    """
    counted = values["num_relevant"] > 0
    total = int(counted.sum())
    metrics = {name: value for name, value in values.items() if name != "num_relevant"}
    if metrics and not total:
        raise ValueError("labels: expected a query with a reference of its own class, got none")
    # fsum is exact: the mean does not depend on the order of the queries.
    result: dict[str, float] = {
        name: math.fsum(value[counted].tolist()) / total for name, value in metrics.items()
    }
    result["num_queries"] = total
    return result


@torch.no_grad()
def retrieval_per_query(
    query: Tensor,
    labels: Tensor,
    reference: Tensor | None = None,
    reference_labels: Tensor | None = None,
    metrics: Iterable[str] = RANKING,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    normalize: Normalize = "unit",
    block_size: BlockSize = None,
    backend: Backend = "ccp_fast",
    rows: Tensor | None = None,
) -> dict[str, Tensor]:
    """The metrics of every single query: arguments as in ``retrieval``, without "nmi".

    rows: [B] int64, the queries that are wanted; the others get NaN. None: all.

    Returns:
        A [M] fp64 tensor for each metric, NaN where no reference is of the query's class, and "num_relevant"
        [M] int64, the number R of such references.
    """
    wanted = _wanted(metrics)
    if "nmi" in wanted:
        raise ValueError('metrics: "nmi" has no value per query; ask retrieval for it')
    if (reference is None) != (reference_labels is None):
        raise ValueError("reference_labels: expected exactly when reference is given")
    q, r = prepare(query, reference, normalize)
    _checks.labels("labels", labels, query)
    if reference is None or reference_labels is None:
        reference_labels = labels
    else:
        _checks.labels("reference_labels", reference_labels, reference)
    ks = _cutoffs(ks) if "recall_at_k" in wanted else []
    columns = [
        n for name in wanted for n in ([f"recall_at_{k}" for k in ks] if name == "recall_at_k" else [name])
    ]

    relevant = _relevant(labels, reference_labels) - int(reference is None)
    values = {name: query.new_full((len(q),), math.nan, dtype=torch.float64) for name in columns}
    rows = relevant.nonzero().squeeze(1) if rows is None else rows[relevant[rows] > 0]
    depth = torch.full_like(rows, max([1, *ks]))
    if "r_precision" in wanted or "map_at_r" in wanted:
        depth = torch.maximum(depth, relevant[rows])
    depth.clamp_(max=len(r) - int(reference is None))
    for block in ranked_blocks(q, r, rows, depth, reference is None, block_size, backend) if columns else ():
        hits = reference_labels[block.indices] == labels[block.rows, None]
        for name in columns:
            values[name][block.rows] = _score(name, hits, relevant[block.rows])
    return {**values, "num_relevant": relevant}


def _score(name: str, hits: Tensor, relevant: Tensor) -> Tensor:
    """One metric from ``hits`` [B, k] bool of queries with ``relevant`` [B] references each -> [B] fp64."""
    if name == "precision_at_1":
        return hits[:, 0].to(torch.float64)
    if name.startswith("recall_at_"):
        return hits[:, : int(name.removeprefix("recall_at_"))].any(dim=1).to(torch.float64)
    rank = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    hits = hits & (rank <= relevant[:, None])
    if name == "r_precision":
        return hits.sum(1).to(torch.float64) / relevant
    precision = hits.cumsum(1).to(torch.float64) / rank
    return ordered_sum(precision * hits) / relevant


def _relevant(labels: Tensor, reference_labels: Tensor) -> Tensor:
    """How many references are of each query's class, [M] int64."""
    classes, counts = torch.unique(reference_labels, return_counts=True)
    place = torch.searchsorted(classes, labels.contiguous()).clamp_(max=len(classes) - 1)
    return torch.where(classes[place] == labels, counts[place], 0)


def _wanted(metrics: Iterable[str]) -> list[str]:
    wanted = [metrics] if isinstance(metrics, str) else list(dict.fromkeys(metrics))
    for name in wanted:
        if name not in METRICS:
            raise ValueError(f"metrics: expected some of {', '.join(METRICS)}, got {name!r}")
    return wanted


def _cutoffs(ks: Sequence[int]) -> list[int]:
    if not ks or any(not isinstance(k, int) or k < 1 for k in ks):
        raise ValueError(f"ks: expected integers of at least 1, got {ks!r}")
    return sorted(set(ks))
