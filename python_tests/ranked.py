"""What must hold of the nearest references whatever the rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from ccp_fast import reference
from ccp_fast.functional import NearestReferences


def assert_ranked(
    found: NearestReferences, anchors: Tensor, references: Tensor, normalize: str | None, roundings: float = 4
) -> None:
    """The i-th found is as far as the i-th nearest is in float64, and the distance told is that of the pair.

    Squared distances may be off by so many roundings of the largest ‖a‖² + ‖r‖², and √D/4 more of sums of D terms.
    """
    a, r = (reference.pairs.normalise(x.double(), normalize) for x in (anchors, references))
    squared = torch.sub(a[:, None], r).square().sum(-1)
    k = found.indices.shape[1]
    size = a.square().sum(1).max() + r.square().sum(1).max()
    error = (roundings + a.shape[1] ** 0.5 / 4) * torch.finfo(found.distances.dtype).eps * size
    pairs = squared.gather(1, found.indices)
    assert ((found.distances.double().square() - pairs).abs() <= error).all()
    assert ((pairs - squared.sort(dim=1).values[:, :k]).abs() <= 2 * error).all()
    assert all(len(set(row)) == k for row in found.indices.tolist())
    assert (found.distances.diff(dim=1) >= 0).all()
