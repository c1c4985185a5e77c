"""`ccp_fast::lifted_pairs`: the positive pairs of a batch in the paper's form of the lifted structure loss.

What a pair (i, j) has to do with negatives is in two numbers, the log-sum-exps ℓ_i and ℓ_j of `negative_lse`; what is
left is ½ (log(e^{ℓ_i} + e^{ℓ_j}) + d_ij)₊² over positive pairs, of which there are few. They are taken one partner of
every sample at a time: memory is O(M·D), time O(M·D) for each of the largest class's members. Nothing is scattered, so
a GPU's results are the same from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ccp_fast.ops  # noqa: F401
from ccp_fast.ops._second import differentiate_twice
from ccp_fast.reference.pairs import norm


class Pair(NamedTuple):
    """Sample i with one of its positives, for all i at once."""

    partner: Tensor  # [M] j; i itself where it has no such partner
    difference: Tensor  # [M, D] v_i − v_j
    distance: Tensor  # [M]
    hinge: Tensor  # [M] (log(e^{ℓ_i} + e^{ℓ_j}) + d)₊


def _pairs(vectors: Tensor, labels: Tensor, negative_lse: Tensor) -> Iterator[Pair]:
    """Every ordered positive pair once: first each sample's next one in its class, then the one after it, ..."""
    order = torch.argsort(labels, stable=True)
    ranked = labels[order]
    begin, end = (torch.searchsorted(ranked, ranked, right=right) for right in (False, True))
    size, place = end - begin, torch.arange(len(labels), device=labels.device) - begin
    largest = int(size.max()) if len(size) else 0
    for step in range(1, largest):
        partner = torch.empty_like(order)
        partner[order] = order[begin + (place + step) % size]
        has_partner = torch.empty_like(order, dtype=torch.bool)
        has_partner[order] = step < size
        partner = torch.where(has_partner, partner, torch.arange(len(order), device=order.device))
        difference = vectors - vectors[partner]
        distance = torch.linalg.vector_norm(difference, dim=1)
        reach = torch.logaddexp(negative_lse, negative_lse[partner]) + distance
        yield Pair(partner, difference, distance, reach.clamp(min=0).where(has_partner, 0.0))


@torch.library.custom_op("ccp_fast::lifted_pairs", mutates_args=())
def lifted_pairs(vectors: Tensor, labels: Tensor, negative_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[M] ½ Σ_{j∈P_i} (log(e^{ℓ_i} + e^{ℓ_j}) + d_ij)₊²; [] the number of terms, and of those that are not zero."""
    value = torch.zeros_like(negative_lse)
    terms, active = labels.new_zeros(()), labels.new_zeros(())
    for pair in _pairs(vectors, labels, negative_lse):
        value += pair.hinge.square() / 2
        terms += (pair.partner != torch.arange(len(labels), device=labels.device)).sum()
        active += (pair.hinge != 0).sum()  # a NaN counts
    return value, terms, active


@torch.library.custom_op("ccp_fast::lifted_pairs_backward", mutates_args=())
def _backward(
    grad_value: Tensor, vectors: Tensor, labels: Tensor, negative_lse: Tensor
) -> tuple[Tensor, Tensor]:
    grad_vectors, grad_lse = torch.zeros_like(vectors), torch.zeros_like(negative_lse)
    for partner, difference, distance, hinge in _pairs(vectors, labels, negative_lse):
        # (i, j) and (j, i) are two terms with one hinge, and sample i is in both: nothing has to be scattered to j.
        pull = (grad_value + grad_value[partner]) * hinge
        grad_vectors += difference * torch.where(distance == 0, 0.0, pull / distance)[:, None]
        grad_lse += pull * torch.sigmoid(negative_lse - negative_lse[partner])
    return grad_vectors, grad_lse


@lifted_pairs.register_fake
def _(vectors: Tensor, labels: Tensor, negative_lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(negative_lse), labels.new_empty(()), labels.new_empty(())


@_backward.register_fake
def _(grad_value: Tensor, vectors: Tensor, labels: Tensor, negative_lse: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(vectors), torch.empty_like(negative_lse)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad_value: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    vectors, labels, negative_lse = ctx.saved_tensors
    grad_vectors, grad_lse = _backward(grad_value, vectors, labels, negative_lse)
    return grad_vectors, None, grad_lse


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _differentiate_twice(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_value, vectors, labels, negative_lse = ctx.saved_tensors

    def dense(vectors: Tensor, negative_lse: Tensor) -> Tensor:
        """Through the matrix of pairs."""
        same = (labels[:, None] == labels).fill_diagonal_(False)
        reach = torch.logaddexp(negative_lse[:, None], negative_lse) + norm(vectors[:, None] - vectors)
        return reach.clamp(min=0).masked_fill(~same, 0.0).square().sum(1) / 2

    by_grad, by_vectors, by_lse = differentiate_twice(
        dense, (vectors, negative_lse), grad_value, grad_outputs
    )
    return by_grad, by_vectors, None, by_lse


lifted_pairs.register_autograd(_differentiate, setup_context=_save_forward)
_backward.register_autograd(_differentiate_twice, setup_context=_save_backward)
