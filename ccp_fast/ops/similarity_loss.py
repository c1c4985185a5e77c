"""`ccp_fast::similarity_loss`: the fused loss over all pairs, its fakes and its derivatives.

The first derivative is fused as well. The second (`create_graph=True`) goes through the dense `ccp_fast.reference`,
which builds the matrix of pairs: slow and large, but right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ccp_fast.ops  # noqa: F401
from ccp_fast import reference
from ccp_fast.ops._second import differentiate_twice
from ccp_fast.ops._tf32 import allow_tf32

SAVED_PER_ROW = 3  # kSaved in csrc/losses/loss.h
MOST_MEMBERS = 32  # kMostMembers there

_forward = torch.ops.ccp_fast.similarity_loss.default
_backward = torch.ops.ccp_fast.similarity_loss_backward.default

# The dense loss of each registered name, given its parameters in the order of csrc/losses/registry.h.
_REFERENCE: dict[str, tuple[Callable[..., Tensor], tuple[str, ...], dict[str, Any]]] = {
    "contrastive_l2": (reference.contrastive, ("pos_margin", "neg_margin"), {"distance": "l2"}),
    "contrastive_cosine": (reference.contrastive, ("pos_margin", "neg_margin"), {"distance": "cosine"}),
    "triplet": (reference.triplet, ("margin",), {}),
    "multi_similarity": (reference.multi_similarity, ("alpha", "beta", "base"), {}),
    "proxy_nca": (reference.proxy_nca, ("temperature",), {"variant": "plus_plus"}),
    "proxy_nca_original": (reference.proxy_nca, ("temperature",), {"variant": "original"}),
    "proxy_anchor": (reference.proxy_anchor, ("alpha", "margin"), {}),
    "lifted_anchor": (reference.lifted_structure, ("margin",), {"variant": "anchor"}),
    "negative_lse": (reference.losses.negative_lse, ("margin",), {}),
    "margin_softmax": (reference.margin_softmax, ("scale", "margin"), {"kind": "cosface"}),
    "margin_softmax_arcface": (reference.margin_softmax, ("scale", "margin"), {"kind": "arcface"}),
    "soft_triple": (reference.soft_triple, ("scale", "gamma", "margin"), {"tau": 0.0}),
}

LOSS_NAMES = tuple(_REFERENCE)


def dense_loss(
    anchors: Tensor,
    references: Tensor,
    labels: Tensor,
    reference_labels: Tensor | None,
    loss: str,
    parameters: list[float],
    normalize: str,
    reduction: str,
    proxy_rows: bool,
    exclude_self: bool,
) -> Tensor:
    """The same value in plain PyTorch, differentiable any number of times."""
    function, names, fixed = _REFERENCE[loss]
    return function(
        anchors,
        references,
        labels,
        reference_labels,
        **dict(zip(names, parameters, strict=True)),
        **fixed,
        normalize=None if normalize == "none" else normalize,
        reduction=reduction,
        anchor="proxy" if proxy_rows else "sample",
        exclude_self=exclude_self,
    )


def _rows_and_columns(anchors: Tensor, references: Tensor, proxy_rows: bool) -> tuple[Any, Any]:
    count = references.shape[0] * references.shape[1] if references.dim() == 3 else references.shape[0]
    return (count, anchors.shape[0]) if proxy_rows else (anchors.shape[0], count)


@torch.library.register_fake("ccp_fast::similarity_loss")
def _(
    anchors: Tensor,
    references: Tensor,
    labels: Tensor,
    reference_labels: Tensor | None,
    loss: str,
    parameters: list[float],
    normalize: str,
    reduction: str,
    proxy_rows: bool,
    exclude_self: bool,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns = _rows_and_columns(anchors, references, proxy_rows)
    is_double = torch.float64 in (anchors.dtype, references.dtype)
    dtype = torch.float64 if is_double else torch.float32
    return (
        anchors.new_empty((rows,) if reduction == "none" else (), dtype=dtype),
        anchors.new_empty((SAVED_PER_ROW, rows), dtype=dtype),
        anchors.new_empty((2,), dtype=torch.float64),
        anchors.new_empty((torch.sym_max(rows, columns),), dtype=torch.uint8),
    )


@torch.library.register_fake("ccp_fast::similarity_loss_backward")
def _(
    grad_loss: Tensor,
    anchors: Tensor,
    references: Tensor,
    labels: Tensor,
    reference_labels: Tensor | None,
    row_state: Tensor,
    normalizer: Tensor,
    active: Tensor,
    loss: str,
    parameters: list[float],
    normalize: str,
    reduction: str,
    proxy_rows: bool,
    exclude_self: bool,
    allow_tf32: bool,
    need_anchors: bool,
    need_references: bool,
) -> tuple[Tensor, Tensor]:
    return (
        anchors.new_empty(anchors.shape if need_anchors else (0,)),
        references.new_empty(references.shape if need_references else (0,)),
    )


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    anchors, references, labels, reference_labels, *ctx.options = inputs
    _, row_state, normalizer, active = output
    ctx.mark_non_differentiable(row_state, normalizer, active)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(anchors, references, labels, reference_labels, row_state, normalizer, active)


def _differentiate(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    no_gradient = (None,) * 9
    if grad_loss is None:
        return (None, None, *no_gradient)
    anchors, references, labels, reference_labels, *saved = ctx.saved_tensors
    need_anchors, need_references = ctx.needs_input_grad[:2]
    grad_anchors, grad_references = _backward(
        grad_loss,
        anchors,
        references,
        labels,
        reference_labels,
        *saved,
        *ctx.options,
        need_anchors,
        need_references,
    )
    return (
        grad_anchors if need_anchors else None,
        grad_references if need_references else None,
        *no_gradient,
    )


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    grad_loss, anchors, references, labels, reference_labels, _, _, _, *options = inputs
    *ctx.options, ctx.need_anchors, ctx.need_references = options
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(grad_loss, anchors, references, labels, reference_labels)


def _differentiate_twice(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_loss, anchors, references, labels, reference_labels = ctx.saved_tensors
    *options, _ = ctx.options  # less allow_tf32

    def dense(anchors: Tensor, references: Tensor) -> Tensor:
        return dense_loss(anchors, references, labels, reference_labels, *options)

    second = differentiate_twice(dense, (anchors, references), grad_loss, grad_outputs)
    return (*second, *(None,) * 14)


torch.library.register_autograd("ccp_fast::similarity_loss", _differentiate, setup_context=_save_forward)
torch.library.register_autograd(
    "ccp_fast::similarity_loss_backward", _differentiate_twice, setup_context=_save_backward
)


def similarity_loss(
    anchors: Tensor,
    references: Tensor,
    labels: Tensor,
    reference_labels: Tensor | None,
    loss: str,
    parameters: list[float],
    normalize: str,
    reduction: str,
    proxy_rows: bool,
    exclude_self: bool,
) -> Tensor:
    """The loss alone; what backward needs stays inside.

    A GPU rounds float32 factors to tf32 where torch's own matrix products may: `ccp_fast.ops._tf32`.
    """
    value: Tensor = _forward(
        anchors,
        references,
        labels,
        reference_labels,
        loss,
        parameters,
        normalize,
        reduction,
        proxy_rows,
        exclude_self,
        allow_tf32(),
    )[0]
    return value
