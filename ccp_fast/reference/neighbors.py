"""The nearest references of every anchor, from the dense matrix of distances."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast._checks import Normalize
from ccp_fast.reference.pairs import normalise


class NearestReferences(NamedTuple):
    """Neighbours of every anchor, the nearest first; for `nearest_reference` without the last axis."""

    indices: Tensor  # [M, k] int64, rows of the references as [N, D]
    distances: Tensor  # [M, k] Euclidean


def nearest_reference(
    anchors: Tensor, references: Tensor, *, normalize: Normalize = None
) -> NearestReferences:
    """The nearest one: indices [M] and distances [M]."""
    indices, distances = nearest_references(anchors, references, 1, normalize=normalize)
    return NearestReferences(indices[:, 0], distances[:, 0])


@torch.no_grad()
def nearest_references(
    anchors: Tensor,  # [M, D]
    references: Tensor | None = None,  # [N, D] or [C, K, D]; None: the anchors, each leaving out itself
    k: int = 1,
    *,
    normalize: Normalize = None,
) -> NearestReferences:
    """The k smallest ‖a_i − r_j‖ of each row, ties to the lowest index; −1 and +inf where there are no more."""
    others = anchors if references is None else references.flatten(0, -2)
    wide = torch.promote_types(torch.promote_types(anchors.dtype, others.dtype), torch.float32)
    a, r = normalise(anchors.to(wide), normalize), normalise(others.to(wide), normalize)
    squared = torch.sub(a[:, None], r).square().sum(-1)
    if references is None:
        squared.fill_diagonal_(torch.inf)
    squared, indices = squared.sort(dim=1, stable=True)
    missing = squared == torch.inf
    indices = torch.nn.functional.pad(
        indices.masked_fill(missing, -1)[:, :k], (0, max(0, k - len(r))), value=-1
    )
    distances = torch.nn.functional.pad(squared[:, :k].sqrt(), (0, max(0, k - len(r))), value=torch.inf)
    return NearestReferences(indices, distances)
