"""Who is compared with whom: rows, columns, positives and negatives of a loss, as dense matrices."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast._checks import Anchor, Normalize, check_anchor, check_labels, describe

ZERO_NORM = 1e-12  # `unit` maps vectors of at most this norm to zero


class Pairs(NamedTuple):
    """All pairs of a loss, already normalised."""

    rows: Tensor  # [R, D] one row of the loss each
    columns: Tensor  # [Q, D]
    positive: Tensor  # [R, Q] bool: the same label
    negative: Tensor  # [R, Q] bool: different labels; a pair of a sample with itself is neither

    def similarity(self) -> Tensor:
        """[R, Q] dot products."""
        return torch.mm(self.rows, self.columns.T)

    def squared_distance(self) -> Tensor:
        """[R, Q] from differences, so that it is exact near zero."""
        return self.differences().square().sum(-1)

    def distance(self) -> Tensor:
        """[R, Q], gradient 0 where it is 0."""
        return norm(self.differences())

    def differences(self) -> Tensor:
        """[R, Q, D]."""
        return torch.sub(self.rows[:, None], self.columns)


def norm(vectors: Tensor) -> Tensor:
    """Euclidean norm over the last axis; at zero its first and second derivatives are 0, not NaN."""
    if not torch.is_grad_enabled():  # then without a copy
        plain: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
        return plain
    zero = torch.linalg.vector_norm(vectors.detach(), dim=-1) == 0
    lengths: Tensor = torch.linalg.vector_norm(vectors.masked_fill(zero[..., None], 1.0), dim=-1)
    return lengths.masked_fill(zero, 0.0)


def normalise(vectors: Tensor, how: Normalize) -> Tensor:
    """`ball`: v/max(1,‖v‖), the identity up to and with ‖v‖ = 1. `unit`: v/‖v‖, and 0 where ‖v‖ <= 1e-12."""
    if how is None:
        return vectors
    length = norm(vectors)[..., None]
    if how == "ball":
        return vectors / torch.where(length > 1, length, 1.0)
    if how == "unit":
        return vectors / length.masked_fill(length <= ZERO_NORM, torch.inf)
    raise ValueError(f'normalize: expected "ball", "unit" or None, got {how!r}')


def make_pairs(
    anchors: Tensor,  # [M, D]
    references: Tensor | None,  # None, [N, D] or [C, K, D]
    labels: Tensor,  # [M] int64
    reference_labels: Tensor | None,  # [N] int64 where references is [N, D]
    exclude_self: bool,  # reference i < M is anchor i; so it is where references is None
    normalize: Normalize,
    anchor: Anchor,
) -> Pairs:
    """Check the arguments of a loss and lay out its pairs; `anchor="proxy"` makes the references the rows."""
    check_anchor(anchor)
    _check_vectors("anchors", anchors, 2)
    check_labels("labels", labels, len(anchors))
    samples = normalise(at_least_float32(anchors), normalize)
    if references is None:
        if reference_labels is not None:
            raise ValueError("reference_labels: expected None where references is None")
        same = labels[:, None] == labels
        self_pair = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
        return Pairs(samples, samples, same & ~self_pair, ~same)

    flat, flat_labels = _flatten(references, labels, reference_labels)
    if flat.shape[1] != anchors.shape[1]:
        raise ValueError(
            f"references: expected vectors of {anchors.shape[1]} components, got {flat.shape[1]}"
        )
    targets = normalise(at_least_float32(flat), normalize)
    if samples.dtype != targets.dtype:  # float64 samples, float32 proxies: the wider of the two
        wide = torch.promote_types(samples.dtype, targets.dtype)
        samples, targets = samples.to(wide), targets.to(wide)
    same = labels[:, None] == flat_labels
    positive, negative = same, ~same
    if exclude_self:
        if references.dim() != 2 or len(flat) < len(anchors):
            raise ValueError(
                f"references: expected [N, D] with N >= {len(anchors)} where exclude_self is True, "
                f"got shape {list(references.shape)}"
            )
        other = ~torch.eye(*same.shape, dtype=torch.bool, device=same.device)
        positive, negative = positive & other, negative & other
    if anchor == "sample":
        return Pairs(samples, targets, positive, negative)
    return Pairs(targets, samples, positive.T, negative.T)


def _flatten(references: Tensor, labels: Tensor, reference_labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """References as [N, D] with one label a row."""
    if references.dim() == 3:  # [C, K, D]: row c*K + k has label c
        if reference_labels is not None:
            raise ValueError("reference_labels: expected None, references of shape [C, K, D] imply them")
        _check_vectors("references", references, 3)
        classes, centres, _ = references.shape
        outside = (labels < 0) | (labels >= classes)
        if bool(outside.any()):
            wrong = int(labels[outside][0])
            raise ValueError(f"labels: expected values in [0, {classes}) for {classes} classes, got {wrong}")
        implied = torch.arange(classes, device=references.device).repeat_interleave(centres)
        return references.flatten(0, 1), implied
    _check_vectors("references", references, 2)
    if reference_labels is None:
        raise ValueError("reference_labels: expected one label per reference of shape [N, D], got None")
    check_labels("reference_labels", reference_labels, len(references))
    return references, reference_labels


def at_least_float32(x: Tensor) -> Tensor:
    """Half types as float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _check_vectors(name: str, x: Tensor, dims: int) -> None:
    if x.dim() != dims or not x.is_floating_point():
        raise ValueError(f"{name}: expected floating point of {dims} dimensions, got {describe(x)}")
