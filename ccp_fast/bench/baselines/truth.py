"""Value and gradients of a loss in float64, at any number of proxies: what errors are measured against.

The matrix of similarities in float64 has no room beside 10⁷ proxies, and nor have unit proxies. So it is taken a few
rows at a time, once for the totals and counts of the loss's terms and once for the gradients, and the proxies a block
at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ccp_fast.bench.baselines.by_hand import to_original
from ccp_fast.bench.baselines.pairs import PairLoss, Term, positives_of, value_of

PAIRS_AT_ONCE = 1 << 27  # of one matrix, of which there are about ten
ITEMS_AT_ONCE = 1 << 20


def value_and_gradients(
    pair_loss: PairLoss,
    anchors: Tensor,
    references: Tensor,
    labels: Tensor,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a loss whose terms are of rows each: anchors [M, D] against proxies [C, K, D].

    In float32 it is what eager PyTorch computes, where that has no room for the whole matrix.
    """
    length_a, a = _unit(anchors.detach(), dtype)
    items = references.detach().flatten(0, 1)  # [N, D]
    positives = positives_of(labels, references.shape[1])
    parts = torch.arange(len(a), device=a.device).split(max(1, PAIRS_AT_ONCE // len(items)))

    of_parts = [pair_loss(_similarities(a[rows], items), positives[rows]) for rows in parts]
    zero = torch.zeros((), dtype=dtype, device=a.device)
    whole = tuple(
        Term(sum((part.total for part in same), zero), sum(part.number for part in same))
        for same in zip(*of_parts, strict=True)
    )

    grad_a, grad_r = torch.zeros_like(a), torch.zeros_like(items, dtype=dtype)
    for rows in parts:
        s = _similarities(a[rows], items).requires_grad_()
        terms = pair_loss(s, positives[rows])
        shares = (term._replace(number=of.number) for term, of in zip(terms, whole, strict=True))
        (g,) = torch.autograd.grad(value_of(tuple(shares)), s)
        for block in _blocks(len(items)):
            grad_a[rows] += g[:, block] @ _unit(items[block], dtype)[1]
            grad_r[block] += g[:, block].T @ a[rows]
    for block in _blocks(len(items)):
        length, unit = _unit(items[block], dtype)
        to_original(grad_r[block], unit, length)
    return value_of(whole), to_original(grad_a, a, length_a), grad_r.view(references.shape)


def _blocks(items: int) -> Iterator[slice]:
    return (slice(begin, begin + ITEMS_AT_ONCE) for begin in range(0, items, ITEMS_AT_ONCE))


def _unit(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Lengths and unit vectors."""
    wide = x.to(dtype)
    length = torch.linalg.vector_norm(wide, dim=1)
    return length, wide / length[:, None]


def _similarities(a: Tensor, items: Tensor) -> Tensor:
    """[M, N] of unit rows and of items as they are."""
    s = a.new_empty(len(a), len(items))
    for block in _blocks(len(items)):
        s[:, block] = a @ _unit(items[block], a.dtype)[1].T
    return s
