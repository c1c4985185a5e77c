"""pytorch-metric-learning, set to the same loss.

References are the proxies with their labels, similarities and distances those of unit vectors, reductions the
same. Proxy-Anchor and ArcFace have one proxy a class, so they are compared with K = 1 and as many classes as
there would be proxies. Where a class owns proxies, they are set to the references.
"""

from __future__ import annotations

import math
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

    def make(classes: int, per_class: int, dim: int) -> Any:
        return losses.ProxyAnchorLoss(classes, dim, margin=margin, alpha=alpha)

    return _with_proxies(make, "proxies", lambda proxies: proxies)


def arcface(scale: float, margin: float) -> Call:
    """ArcFaceLoss on the references; its margin is in degrees."""
    from pytorch_metric_learning import losses

    def make(classes: int, per_class: int, dim: int) -> Any:
        return losses.ArcFaceLoss(classes, dim, margin=math.degrees(margin), scale=scale)

    return _with_proxies(make, "W", lambda proxies: proxies.T)


def soft_triple(scale: float, gamma: float, margin: float) -> Call:
    """SoftTripleLoss, which has no regulariser, on the references."""
    from pytorch_metric_learning import losses

    def make(classes: int, per_class: int, dim: int) -> Any:
        return losses.SoftTripleLoss(classes, dim, per_class, la=scale, gamma=gamma, margin=margin)

    return _with_proxies(make, "fc", lambda proxies: proxies.T)


def _with_proxies(
    make: Callable[[int, int, int], Any], name: str, layout: Callable[[Tensor], Tensor]
) -> Call:
    """The references stand in for the Parameter of this name, laid out as it is."""
    criteria: dict[int, Any] = {}

    def call(anchors: Tensor, references: Tensor | None, labels: Tensor) -> Tensor:
        assert references is not None
        classes, per_class, dim = references.shape
        if classes not in criteria:
            criteria[classes] = make(classes, per_class, dim)
            delattr(criteria[classes], name)
        setattr(criteria[classes], name, layout(references.flatten(0, 1)))
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
