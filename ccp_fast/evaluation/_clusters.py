"""Normalised mutual information between classes and k-means clusters."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from ccp_fast._checks import Normalize, check_one_of

from . import _checks

KMeans = Literal["scikit-learn", "faiss"]

_ITERATIONS = 20


@torch.no_grad()
def normalized_mutual_information(
    embeddings: Tensor,
    labels: Tensor,
    *,
    normalize: Normalize = "unit",
    kmeans: KMeans = "scikit-learn",
    seed: int = 0,
) -> float:
    """NMI = 2 I(Y; Z) / (H(Y) + H(Z)) of the labels Y and k-means clusters Z, as many as there are classes.

    k-means on the normalised embeddings in fp32, one start, at most 20 iterations over all of them. Its time is
    proportional to embeddings times classes; memory is that of the embeddings, a few times over, and of the centres.
    Published figures often come from a random initialisation, which scores lower.

    Args:
        embeddings: [N, D] floating point.
        labels: [N] int64. Classes of one member count, here and among the clusters.
        normalize: as in ``retrieval``.
        kmeans: "scikit-learn": k-means++ initialisation. "faiss": random rows at first, as in
            pytorch-metric-learning (extra [faiss]). The two give different figures: compare within one.
        seed: of the initialisation.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed, or faiss where it is asked for.
        ValueError: shapes or dtypes that do not fit, or another kmeans.
    """
    _checks.embeddings("embeddings", embeddings)
    _checks.labels("labels", labels, embeddings)
    check_kmeans(kmeans)
    x = embeddings.detach().to(torch.float32)
    if normalize is not None:
        smallest = 1.0 if normalize == "ball" else torch.finfo(torch.float32).tiny
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=smallest)
    _, classes = torch.unique(labels, return_inverse=True)
    # No more clusters than distinct rows: a collapsed network leaves one.
    clusters = min(int(classes.max()) + 1, len(torch.unique(x, dim=0)))
    found = _FIND[kmeans](x.cpu(), clusters, seed)
    score = _scikit_learn("metrics").normalized_mutual_info_score
    return float(score(classes.cpu().numpy(), found.numpy()))


def check_kmeans(kmeans: KMeans) -> None:
    """ValueError for another k-means, ModuleNotFoundError where it is not installed: before any work."""
    check_one_of("kmeans", kmeans, tuple(_FIND))
    _scikit_learn("metrics")
    if kmeans == "faiss":
        _faiss()
    else:
        _scikit_learn("cluster")


def _by_scikit_learn(x: Tensor, clusters: int, seed: int) -> Tensor:
    found = _scikit_learn("cluster").KMeans(
        clusters, init="k-means++", n_init=1, max_iter=_ITERATIONS, random_state=seed
    )
    return torch.from_numpy(found.fit_predict(x.numpy()))


def _by_faiss(x: Tensor, clusters: int, seed: int) -> Tensor:
    # By default faiss takes a sample of the rows where there are more than 256 a cluster, and its own seed.
    options = {"min_points_per_centroid": 1, "max_points_per_centroid": len(x)}
    found = _faiss().Kmeans(x.shape[1], clusters, niter=_ITERATIONS, seed=seed + 1, **options)
    found.train(x.numpy())
    return torch.from_numpy(found.index.search(x.numpy(), 1)[1][:, 0])


_FIND = {"scikit-learn": _by_scikit_learn, "faiss": _by_faiss}


def _scikit_learn(part: str) -> ModuleType:
    return _imported(f"sklearn.{part}", "scikit-learn", "train")


def _faiss() -> ModuleType:
    return _imported("faiss", "faiss", "faiss")


def _imported(module: str, library: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'nmi: needs {library} for k-means, which is not installed; pip install "ccp-fast[{extra}]"'
        ) from error
