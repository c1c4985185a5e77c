"""The kernels of language models that fuse a linear layer with its cross-entropy, set to Proxy-NCA++.

With unit vectors and one proxy a class, Proxy-NCA++ is a softmax cross-entropy. Its logits are
−‖a − r‖²/T = (2·a·r − 2)/T, and −2/T, which is the same for every class, falls out of the softmax. So the hidden
states are (2/T)·a/‖a‖, the vocabulary is the unit proxies, the targets are the labels, and value and gradients are
those of `functional.proxy_nca(..., normalize="unit", reduction="mean")`.

None of these kernels normalises. As rivals they get embeddings and proxies as ours does, normalised by PyTorch, with
gradients back to the originals: the same work. With `alone` they get unit vectors and stop at the gradients of those,
which is less than ours does and shows what the kernel itself takes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

Head = Callable[
    [Tensor, Tensor, Tensor], Tensor
]  # hidden [M, D], vocabulary [N, D], targets [M] -> mean loss


def hidden_states(anchors: Tensor, temperature: float) -> Tensor:
    """(2/T)·a/‖a‖ [M, D], rounded to the anchors' dtype once."""
    return (normalize(anchors.float(), dim=1) * (2 / temperature)).to(anchors.dtype)


def vocabulary(references: Tensor) -> Tensor:
    """Unit proxies [C, D] of references [C, 1, D]."""
    classes, per_class, dim = references.shape
    if per_class != 1:
        raise ValueError(
            f"references: expected one proxy a class, shape [C, 1, D], got {list(references.shape)}"
        )
    return normalize(references.view(classes, dim), dim=1)


def loss_of(
    head: Head, temperature: float, anchors: Tensor, references: Tensor | None, labels: Tensor
) -> Tensor:
    """Proxy-NCA++ by way of a cross-entropy."""
    assert references is not None
    return head(hidden_states(anchors, temperature), vocabulary(references), labels)


def eager() -> Head:
    """A matrix product and cross_entropy; of bfloat16 the logits are made float32, as trainers do."""

    def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        logits = hidden @ weight.T
        return cross_entropy(logits.float() if logits.dtype == torch.bfloat16 else logits, targets)

    return head


def torch_linear(chunked: bool) -> Callable[[], Head]:
    """torch.nn.functional.linear_cross_entropy; `chunked`: with its options, which cut the batch."""

    def make() -> Head:
        function: Any = getattr(torch.nn.functional, "linear_cross_entropy", None)
        options: Any = getattr(torch.nn, "LinearCrossEntropyOptions", None)
        if function is None or (chunked and options is None):
            missing = "LinearCrossEntropyOptions" if function else "linear_cross_entropy"
            raise ImportError(f"torch {torch.__version__} has no {missing}")
        extra = {"options": options()} if chunked else {}
        return lambda hidden, weight, targets: function(hidden, weight, targets, **extra)

    return make


def liger() -> Head:
    """liger-kernel's fused linear cross-entropy; it cuts the batch."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import]

    criterion = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, weight, targets: criterion(weight, hidden, targets)


def cut() -> Head:
    """cut-cross-entropy, exact: without the filter that drops small gradients."""
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import]

    return lambda hidden, weight, targets: linear_cross_entropy(hidden, weight, targets, filter_eps=None)


def inf_cl() -> Head:
    """Inf-CL's kernel for one GPU: rounds its inputs to tf32, whatever torch's setting is."""
    from inf_cl import cal_flash_loss  # type: ignore[import]

    def head(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        dim = hidden.shape[1]
        loss: Tensor = cal_flash_loss(hidden, weight, targets, head_dim=min(dim, 256)).mean()
        return loss

    return head


# By the name that is shown; each import is made when the peer is prepared.
HEADS: dict[str, Callable[[], Head]] = {
    "linear_cross_entropy": torch_linear(chunked=False),
    "linear_cross_entropy, chunked": torch_linear(chunked=True),
    "Liger": liger,
    "cut-cross-entropy": cut,
    "inf-cl": inf_cl,
}
