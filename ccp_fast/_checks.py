"""Arguments that several public functions share: their types, and what is accepted. A refusal is one sentence."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Normalize = Literal["ball", "unit"] | None
Reduction = Literal["active_mean", "mean", "anchor_mean", "sum", "none"]
Anchor = Literal["sample", "proxy"]

_SOFTMAX_MARGINS = {"none": 0.0, "cosface": 0.35, "arcface": 0.5}  # by kind, as published

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def describe(x: object) -> str:
    """Dtype and shape of a tensor, the type of anything else."""
    if isinstance(x, Tensor):
        return f"{str(x.dtype).removeprefix('torch.')} of shape {list(x.shape)}"
    return type(x).__name__


def check_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """One of the values allowed, of which there are two or more."""
    if value not in allowed:
        *most, last = (f'"{a}"' if isinstance(a, str) else str(a) for a in allowed)
        raise ValueError(f"{name}: expected {', '.join(most)} or {last}, got {value!r}")


def check_normalize(normalize: object) -> None:
    """One of the three ways."""
    check_one_of("normalize", normalize, ("ball", "unit", None))


def check_reduction(reduction: object) -> None:
    """One of the five."""
    check_one_of("reduction", reduction, get_args(Reduction))


def softmax_margin(kind: str, margin: float | None) -> float:
    """Of a margin softmax of this kind; None: as published. ValueError for a margin that it does not have."""
    check_one_of("kind", kind, tuple(_SOFTMAX_MARGINS))
    if margin is None:
        return _SOFTMAX_MARGINS[kind]
    if kind == "none":
        raise ValueError(f'margin: expected None with kind="none", which has no margin, got {margin!r}')
    return margin


def check_anchor(anchor: object) -> None:
    """One of the two sides."""
    check_one_of("anchor", anchor, get_args(Anchor))


def check_positive(name: str, value: float) -> None:
    """A number above 0, which NaN is not."""
    if not as_number(name, value) > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value!r}")


def as_number(name: str, value: object) -> float:
    """The value as a float; also of a tensor of one number."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a number, got {value!r}") from None


def at_least(name: str, value: object, least: int) -> int:
    """The value, an integer of at least `least`, symbolic or not."""
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
    return value  # type: ignore[return-value]


def check_vectors(name: str, x: object, shape: str, *dims: int) -> None:
    """A tensor of one of the dtypes that kernels take and of one of these numbers of dimensions."""
    if not isinstance(x, Tensor) or x.dim() not in dims or x.dtype not in FLOATS:
        raise ValueError(f"{name}: expected floating point of shape {shape}, got {describe(x)}")


def check_labels(name: str, x: object, count: int) -> None:
    """int64 [count]."""
    if not isinstance(x, Tensor) or x.dtype != torch.int64 or x.dim() != 1 or x.shape[0] != count:
        raise ValueError(f"{name}: expected int64 of shape [{count}], got {describe(x)}")


def check_batch(embeddings: Tensor, labels: Tensor, dim: int, device: torch.device) -> None:
    """Floating-point embeddings [B, dim] and int64 labels [B], both on the device of the memory they go into."""
    if embeddings.dim() != 2 or embeddings.shape[1] != dim or not embeddings.is_floating_point():
        got = describe(embeddings)
        raise ValueError(f"embeddings: expected floating point of shape [B, {dim}], got {got}")
    check_labels("labels", labels, len(embeddings))
    for name, tensor in (("embeddings", embeddings), ("labels", labels)):
        if tensor.device != device:
            raise ValueError(f"{name}: expected on {device}, the memory's device, got {tensor.device}")
