"""Losses as modules, called as in pytorch-metric-learning: loss(embeddings, labels[, ref_emb, ref_labels]).

One file per loss, named as its function in `ccp_fast.functional`; `base` holds what they share.
"""

from __future__ import annotations

from ccp_fast.losses.base import MetricLoss
from ccp_fast.losses.contrastive import ContrastiveLoss
from ccp_fast.losses.lifted_structure import LiftedStructureLoss
from ccp_fast.losses.margin_softmax import MarginSoftmaxLoss
from ccp_fast.losses.multi_similarity import MultiSimilarityLoss
from ccp_fast.losses.proxy_anchor import ProxyAnchorLoss
from ccp_fast.losses.proxy_nca import ProxyNCALoss
from ccp_fast.losses.soft_triple import SoftTripleLoss
from ccp_fast.losses.triplet import TripletLoss

__all__ = [
    "ContrastiveLoss",
    "LiftedStructureLoss",
    "MarginSoftmaxLoss",
    "MetricLoss",
    "MultiSimilarityLoss",
    "ProxyAnchorLoss",
    "ProxyNCALoss",
    "SoftTripleLoss",
    "TripletLoss",
]
