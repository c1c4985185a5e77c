"""One call of the CUDA similarity loss under the emulator, with the arguments of the op."""

from __future__ import annotations

from typing import Any, NamedTuple

import emulator
import numpy as np
import torch
from torch import Tensor

from ccp_fast.ops.similarity_loss import dense_loss

SIXTEEN_BITS = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Pairs(NamedTuple):
    """What is compared with what; `references` None: the anchors with each other."""

    anchors: Tensor  # [M, D]
    references: Tensor | None  # [C, K, D], or [N, D] with reference_labels
    labels: Tensor  # [M]
    reference_labels: Tensor | None = None
    exclude_self: bool = False  # the anchors are the first of the references

    def to(self, dtype: torch.dtype) -> Pairs:
        """With other numbers."""
        references = None if self.references is None else self.references.to(dtype)
        return self._replace(anchors=self.anchors.to(dtype), references=references)


class Settings(NamedTuple):
    """Of the loss."""

    loss: str
    parameters: list[float]
    normalize: str = "unit"
    reduction: str = "anchor_mean"
    proxy_rows: bool = False


class Result(NamedTuple):
    """Values, and gradients of the sum of the values."""

    value: Tensor
    grad_anchors: Tensor
    grad_references: Tensor | None


def kernels_of(
    pairs: Pairs, settings: Settings, *, precise: bool = True, multiprocessors: int = 2, seed: int = 0,
    sanitize: bool = False, shared_bytes: int = 227 * 1024, hopper: bool = False, missing_rows: int = 0,
    missing_columns: int = 0,
) -> Any:  # fmt: skip
    """The launchers of a loss, told as the op tells them; so many missing rows or columns come first, not there."""
    module = emulator.load(sanitize=sanitize)
    module.set_seed(seed)
    anchors, references, labels, reference_labels, exclude_self = pairs
    samples = (*_to_numpy(anchors), labels.numpy(), 1)
    if references is None:
        others = samples
    elif reference_labels is None:
        others = (*_to_numpy(references), None, references.shape[1])
    else:
        others = (*_to_numpy(references), reference_labels.numpy(), 1)
    rows, columns = (others, samples) if settings.proxy_rows else (samples, others)
    return module.SimilarityLoss(
        *rows,
        *columns,
        settings.loss,
        settings.parameters,
        settings.normalize,
        settings.reduction,
        references is None or exclude_self,
        precise,
        multiprocessors,
        shared_bytes,
        hopper,
        missing_rows,
        missing_columns,
    )


def emulate(pairs: Pairs, settings: Settings, **options: Any) -> Result:
    """The kernels' result, options as for `kernels_of`. Without shared memory each gradient has a pass of its own."""
    loss = kernels_of(pairs, settings, **options)
    anchors, references = pairs.anchors, pairs.references
    value, *_ = loss.forward()
    grad_rows, grad_columns = loss.backward(np.ones(len(value), np.float32), True, True)
    grad_samples, grad_others = (
        (grad_columns, grad_rows) if settings.proxy_rows else (grad_rows, grad_columns)
    )
    grad_anchors = _to_torch(grad_samples, anchors)
    if references is None:
        return Result(torch.from_numpy(value), grad_anchors + _to_torch(grad_others, anchors), None)
    return Result(torch.from_numpy(value), grad_anchors, _to_torch(grad_others, references))


def dense(pairs: Pairs, settings: Settings, dtype: torch.dtype) -> Result:
    """The plain PyTorch reference's result, computed in `dtype` from the same numbers."""
    pairs = pairs.to(dtype)
    # Copies: `to` may hand back the caller's own tensors.
    anchors = pairs.anchors.detach().clone().requires_grad_()
    within = pairs.references is None
    references = anchors if pairs.references is None else pairs.references.detach().clone().requires_grad_()
    reference_labels = pairs.labels if within else pairs.reference_labels
    exclude_self = within or pairs.exclude_self
    value = dense_loss(anchors, references, pairs.labels, reference_labels, *settings, exclude_self)
    value.sum().backward()
    assert anchors.grad is not None
    return Result(value.detach().reshape(-1), anchors.grad, None if within else references.grad)


def _to_numpy(x: Tensor) -> tuple[np.ndarray, str]:
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    if x.dtype in SIXTEEN_BITS:
        return flat.view(torch.uint16).numpy(), SIXTEEN_BITS[x.dtype]
    return flat.numpy(), "float32"


def _to_torch(x: np.ndarray, like: Tensor) -> Tensor:
    tensor = torch.from_numpy(x)
    return (tensor.view(like.dtype) if like.dtype in SIXTEEN_BITS else tensor).reshape(like.shape)
