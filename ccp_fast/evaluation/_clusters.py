"""Normalised mutual information between classes and k-means clusters."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._fixed_point import Normalize


@torch.no_grad()
def normalized_mutual_information(
    embeddings: Tensor, labels: Tensor, *, normalize: Normalize = "unit", seed: int = 0
) -> float:
    """NMI = 2 I(Y; Z) / (H(Y) + H(Z)) of the labels Y and k-means clusters Z, as many as there are classes.

    scikit-learn's k-means on the normalised embeddings in fp32: k-means++ initialisation with ``seed``, one
    start, at most 20 iterations. Published figures often come from a random initialisation, which scores
    lower.

    Args:
        embeddings: [N, D] floating point.
        labels: [N] int64. Classes of one member count, here and among the clusters.
        normalize: as in ``retrieval``.
        seed: of the initialisation.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: shapes or dtypes that do not fit.
    """
    _checks.embeddings("embeddings", embeddings)
    _checks.labels("labels", labels, embeddings)
    try:
        from sklearn.cluster import KMeans
        from sklearn.metrics import normalized_mutual_info_score
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'nmi: needs scikit-learn for k-means, which is not installed; pip install "ccp-fast[train]"'
        ) from error
    x = embeddings.detach().to(torch.float32)
    if normalize is not None:
        smallest = 1.0 if normalize == "ball" else torch.finfo(torch.float32).tiny
        x = x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=smallest)
    _, classes = torch.unique(labels, return_inverse=True)
    # No more clusters than distinct rows: a collapsed network leaves one.
    clusters = min(int(classes.max()) + 1, len(torch.unique(x, dim=0)))
    kmeans = KMeans(clusters, init="k-means++", n_init=1, max_iter=20, random_state=seed)
    found = kmeans.fit_predict(x.cpu().numpy())
    return float(normalized_mutual_info_score(classes.cpu().numpy(), found))
