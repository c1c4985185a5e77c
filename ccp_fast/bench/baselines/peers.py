"""pytorch-metric-learning, set to the same loss.

References are the proxies with their labels, similarities and distances those of unit vectors, reductions the
same. Proxy-Anchor's class owns one proxy a class, so it is compared with K = 1 and as many classes as there
would be proxies; its proxies are set to the references.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Call = Callable[[Tensor, Tensor | None, Tensor], Tensor]


def _with_references(criterion: Any, divide_by_rows: bool = False) -> Call:
    def call(anchors: Tensor, references: Tensor | None, labels: Tensor) -> Tensor:
        if references is None:
            value: Tensor = criterion(anchors, labels)
        else:
            classes, per_class, _ = references.shape
            ref_labels = torch.arange(classes, device=references.device).repeat_interleave(per_class)
            value = criterion(anchors, labels, ref_emb=references.flatten(0, 1), ref_labels=ref_labels)
        return value / len(anchors) if divide_by_rows else value

    return call


def contrastive_cosine(neg_margin: float) -> Call:
    """C1."""
    from pytorch_metric_learning import distances, losses, reducers

    distance, reducer = distances.CosineSimilarity(), reducers.SumReducer()
    criterion = losses.ContrastiveLoss(
        pos_margin=1, neg_margin=neg_margin, distance=distance, reducer=reducer
    )
    return _with_references(criterion, divide_by_rows=True)


def contrastive_l2(pos_margin: float, neg_margin: float) -> Call:
    """C2."""
    from pytorch_metric_learning import losses

    return _with_references(losses.ContrastiveLoss(pos_margin=pos_margin, neg_margin=neg_margin))


def triplet(margin: float) -> Call:
    """All triplets."""
    from pytorch_metric_learning import losses

    return _with_references(losses.TripletMarginLoss(margin=margin))


def multi_similarity(alpha: float, beta: float, base: float) -> Call:
    """Multi-Similarity without miner."""
    from pytorch_metric_learning import losses

    return _with_references(losses.MultiSimilarityLoss(alpha=alpha, beta=beta, base=base))


def proxy_nca(temperature: float) -> Call:
    """NCALoss: what ProxyNCALoss computes, and it takes several proxies a class."""
    from pytorch_metric_learning import losses

    return _with_references(losses.NCALoss(softmax_scale=1 / temperature))


def proxy_anchor(alpha: float, margin: float) -> Call:
    """ProxyAnchorLoss on the references."""
    from pytorch_metric_learning import losses

    criteria: dict[int, Any] = {}

    def call(anchors: Tensor, references: Tensor | None, labels: Tensor) -> Tensor:
        assert references is not None
        classes, _, dim = references.shape
        if classes not in criteria:
            criteria[classes] = losses.ProxyAnchorLoss(classes, dim, margin=margin, alpha=alpha)
            del criteria[classes].proxies
        criteria[classes].proxies = references.flatten(0, 1)
        value: Tensor = criteria[classes](anchors, labels)
        return value

    return call


def retrieval(device: str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """AccuracyCalculator with its own exact neighbours (matrix of distances and topk)."""
    from pytorch_metric_learning.distances import LpDistance
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
    from pytorch_metric_learning.utils.inference import CustomKNN

    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(
        include=names,
        k="max_bin_count",
        device=torch.device(device),
        knn_func=CustomKNN(LpDistance()),
        kmeans_func=lambda *_: None,
    )

    def call(embeddings: Tensor, labels: Tensor) -> Tensor:
        values = calculator.get_accuracy(embeddings, labels)
        return torch.tensor([values[name] for name in names], dtype=torch.float64)

    return call
