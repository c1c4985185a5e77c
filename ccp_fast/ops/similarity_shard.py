"""`ccp_fast::similarity_shard_*` and `similarity_finish`: the fused loss where the proxies are one shard of several.

csrc/registration.cpp says how the four go together; `ccp_fast.distributed` puts the messages between them.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

import ccp_fast.ops  # noqa: F401
from ccp_fast._checks import Normalize
from ccp_fast.ops._tf32 import allow_tf32
from ccp_fast.ops.similarity_loss import LOSS_NAMES, SAVED_PER_ROW

ROW_PARTS = 6  # members of RowParts in csrc/losses/loss.h
USES_POSITIVES = ("triplet",)  # kUsesPositives there

_states = torch.ops.ccp_fast.similarity_shard_states.default
_finish = torch.ops.ccp_fast.similarity_finish.default
_counts = torch.ops.ccp_fast.similarity_shard_counts.default
_backward = torch.ops.ccp_fast.similarity_shard_backward.default


def members_of(loss: str) -> int:
    """Numbers of a row's state: two sums and their counts, or two log-sum-exps of two numbers each."""
    if loss not in LOSS_NAMES:
        raise ValueError(f"loss: expected one of {', '.join(LOSS_NAMES)}, got {loss!r}")
    return 2 if loss == "negative_lse" else 4


class LossSpec(NamedTuple):
    """A registered loss with its options, as `ccp_fast.functional` lays them out."""

    name: str
    parameters: list[float]
    normalize: str
    reduction: str
    proxy_rows: bool

    @property
    def how_normalized(self) -> Normalize:
        """As `ccp_fast.functional` names it."""
        return None if self.normalize == "none" else cast(Normalize, self.normalize)

    @property
    def needs_positives(self) -> bool:
        """Whether a row's positives, which lie in one shard, have to be known to all shards."""
        return self.name in USES_POSITIVES and not self.proxy_rows


class Shard(NamedTuple):
    """What a shard's operators are called with."""

    anchors: Tensor  # [M, D]
    proxies: Tensor  # [C, K, D]
    labels: Tensor  # [M] int64, counted from the shard's first class
    positives: Tensor | None  # [M, K] distances, with `LossSpec.needs_positives`


def states(shard: Shard, spec: LossSpec) -> tuple[Tensor, Tensor]:
    """What the rows gather from this shard, [members, rows], and flags: 0 for an item without a gradient."""
    result: tuple[Tensor, Tensor] = _states(
        *shard, spec.name, spec.parameters, spec.normalize, spec.proxy_rows, allow_tf32()
    )
    return result


def finish(states: Tensor, columns: int, spec: LossSpec) -> tuple[Tensor, Tensor]:
    """Of the states [shards, members, rows], for rows of so many columns in all: [3, rows] for `backward`, and
    [6, rows] float64: positive and negative loss, numbers of active terms of either, numbers of all terms.
    """
    result: tuple[Tensor, Tensor] = _finish(states, columns, spec.name, spec.parameters)
    return result


def counts(shard: Shard, spec: LossSpec) -> Tensor:
    """[M, K]: in how many pairs with this shard's proxies each positive takes part."""
    result: Tensor = _counts(*shard, spec.name, spec.parameters, spec.normalize, allow_tf32())
    return result


def backward(
    grad_loss: Tensor,
    shard: Shard,
    counts: Tensor | None,
    row_state: Tensor,
    normalizer: Tensor,
    active: Tensor,
    spec: LossSpec,
    need_anchors: bool,
    need_proxies: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of the pairs with this shard's proxies; grad_loss is one number, or one for each row."""
    result: tuple[Tensor, Tensor] = _backward(
        grad_loss,
        *shard,
        counts,
        row_state,
        normalizer,
        active,
        spec.name,
        spec.parameters,
        spec.normalize,
        spec.proxy_rows,
        allow_tf32(),
        need_anchors,
        need_proxies,
    )
    return result


def _number_dtype(anchors: Tensor, proxies: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (anchors.dtype, proxies.dtype) else torch.float32


@torch.library.register_fake("ccp_fast::similarity_shard_states")
def _(
    anchors: Tensor,
    proxies: Tensor,
    labels: Tensor,
    positives: Tensor | None,
    loss: str,
    parameters: list[float],
    normalize: str,
    proxy_rows: bool,
    allow_tf32: bool,
) -> tuple[Tensor, Tensor]:
    samples, columns = anchors.shape[0], proxies.shape[0] * proxies.shape[1]
    rows = columns if proxy_rows else samples
    return (
        anchors.new_empty((members_of(loss), rows), dtype=_number_dtype(anchors, proxies)),
        anchors.new_empty((torch.sym_max(samples, columns),), dtype=torch.uint8),
    )


@torch.library.register_fake("ccp_fast::similarity_finish")
def _(states: Tensor, columns: int, loss: str, parameters: list[float]) -> tuple[Tensor, Tensor]:
    rows = states.shape[2]
    return states.new_empty((SAVED_PER_ROW, rows)), states.new_empty((ROW_PARTS, rows), dtype=torch.float64)


@torch.library.register_fake("ccp_fast::similarity_shard_counts")
def _(
    anchors: Tensor,
    proxies: Tensor,
    labels: Tensor,
    positives: Tensor,
    loss: str,
    parameters: list[float],
    normalize: str,
    allow_tf32: bool,
) -> Tensor:
    return torch.empty_like(positives, dtype=torch.int32 if positives.is_cuda else positives.dtype)


@torch.library.register_fake("ccp_fast::similarity_shard_backward")
def _(
    grad_loss: Tensor,
    anchors: Tensor,
    proxies: Tensor,
    labels: Tensor,
    positives: Tensor | None,
    counts: Tensor | None,
    row_state: Tensor,
    normalizer: Tensor,
    active: Tensor,
    loss: str,
    parameters: list[float],
    normalize: str,
    proxy_rows: bool,
    allow_tf32: bool,
    need_anchors: bool,
    need_proxies: bool,
) -> tuple[Tensor, Tensor]:
    return (
        anchors.new_empty(anchors.shape if need_anchors else (0,)),
        proxies.new_empty(proxies.shape if need_proxies else (0,)),
    )
