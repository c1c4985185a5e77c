"""What the functions of this package accept; every refusal is one sentence."""

from __future__ import annotations

from torch import Tensor

from ccp_fast._checks import check_labels, describe


def embeddings(name: str, x: Tensor, like: Tensor | None = None) -> None:
    """[N, D] floating point with N, D >= 1; on the device and of the width of ``like``."""
    if not isinstance(x, Tensor) or x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"{name}: expected a floating-point tensor of shape [N, D], got {describe(x)}")
    if 0 in x.shape:
        raise ValueError(f"{name}: expected at least one row and one column, got {describe(x)}")
    if like is not None and x.shape[1] != like.shape[1]:
        raise ValueError(f"{name}: expected {like.shape[1]} columns as in query, got {describe(x)}")
    if like is not None and x.device != like.device:
        raise ValueError(f"{name}: expected a tensor on {like.device} as query, got one on {x.device}")


def labels(name: str, x: Tensor, like: Tensor) -> None:
    """int64, one for each row of ``like`` and on its device."""
    check_labels(name, x, len(like))
    if x.device != like.device:
        raise ValueError(
            f"{name}: expected a tensor on {like.device} as the embeddings, got one on {x.device}"
        )


def block_size(x: tuple[int, int]) -> None:
    """(queries, references), both at least one."""
    if len(x) != 2 or min(x) < 1:
        raise ValueError(f"block_size: expected (queries, references), each at least 1, got {x}")
