"""Dense plain-PyTorch versions of the public functional API: what the kernels are compared with.

Same names, arguments and defaults as `ccp_fast.functional`. Everything is written for the reader: the matrix
of all pairs exists, distances come from differences, nothing is skipped. Any floating dtype (half types are
computed in float32, and the result is float32), any device, differentiable twice.

`pairs`      who is compared with whom, normalisation, distances
`losses`     a loss is one short function from those matrices to the parts of its rows
`reduction`  from the parts of the rows to the loss
`selection`  greedy k-center, one segment after another
`neighbors`  the nearest references, from the dense matrix of distances
`projection` the gradient and the penalty of the proximal term
"""

from __future__ import annotations

from ccp_fast.reference.losses import (
    centre_spread,
    contrastive,
    lifted_structure,
    margin_softmax,
    multi_similarity,
    proxy_anchor,
    proxy_nca,
    soft_triple,
    triplet,
)
from ccp_fast.reference.neighbors import NearestReferences, nearest_reference, nearest_references
from ccp_fast.reference.projection import projection_grad_
from ccp_fast.reference.selection import FarthestPoints, farthest_points

__all__ = [
    "FarthestPoints",
    "NearestReferences",
    "centre_spread",
    "contrastive",
    "farthest_points",
    "lifted_structure",
    "margin_softmax",
    "multi_similarity",
    "nearest_reference",
    "nearest_references",
    "projection_grad_",
    "proxy_anchor",
    "proxy_nca",
    "soft_triple",
    "triplet",
]
