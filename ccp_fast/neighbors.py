"""The nearest references of every anchor, streamed: which proxy a sample belongs to, which images a query finds."""

from __future__ import annotations

from torch import Tensor

from ccp_fast._checks import Normalize, at_least, check_normalize, check_vectors
from ccp_fast.ops import nearest_references as op
from ccp_fast.ops._tf32 import allow_tf32
from ccp_fast.reference.neighbors import NearestReferences

__all__ = ["NearestReferences", "nearest_reference", "nearest_references"]


def nearest_reference(
    anchors: Tensor, references: Tensor, *, normalize: Normalize = None
) -> NearestReferences:
    """The nearest reference of every anchor: argmin_j ‖a_i − r_j‖.

    `nearest_references` for k = 1, with the same arguments and errors.

    Returns:
        indices [M] int64 and distances [M]. With proxies [C, K, D], indices // K are classes.
    """
    if references is None:
        raise ValueError(
            "references: expected a tensor, got None; nearest_references compares anchors among themselves"
        )
    indices, distances = nearest_references(anchors, references, 1, normalize=normalize)
    return NearestReferences(indices[:, 0], distances[:, 0])


def nearest_references(
    anchors: Tensor,
    references: Tensor | None = None,
    k: int = 1,
    *,
    normalize: Normalize = None,
) -> NearestReferences:
    """The k nearest references of every anchor by Euclidean distance, the nearest first.

    All M·N distances are computed, tile by tile; none outlives its tile. Extra memory is O(M·k + N).

    Args:
        anchors: [M, D] float32, float64, bfloat16 or float16; computed in float32, in float64 if a side is.
        references: [N, D], or proxies [C, K, D], then as [C·K, D]: proxy (c, k) has index c·K + k. None: the
            anchors themselves, each leaving out itself by its index (an equal vector elsewhere stays).
        k: at least 1; any number, though it is meant to be far below N.
        normalize: compare v/‖v‖ ("unit", the order of cosine similarity; zero stays zero), v/max(1, ‖v‖)
            ("ball") or v itself (None), on both sides.

    Returns:
        indices [M, k] int64 and distances [M, k] float32, or float64 if a side is. Ordered by (squared distance
        as computed, index): of two references equally far the lower index comes first. −1 and +inf follow the
        last reference where there are fewer than k. Neither has a gradient.

    Distances are those of float32 products, but pairs much closer than their own length are computed from the
    differences: equal vectors are at distance 0. On a GPU factors are rounded to tf32 where torch's own matrix
    products may be. Results are the same bits for any number of threads, and depend on the instruction set and
    the device; where rankings have to agree on all of them, use `ccp_fast.evaluation.nearest`.

    Raises:
        ValueError: an argument of wrong shape, dtype, device or value.
        RuntimeError: on the CPU, vectors whose distances are no numbers (NaN, infinity, squares that overflow).
            A GPU is not waited for: there such a reference is never picked, and such an anchor has none.
    """
    at_least("k", k, 1)
    check_normalize(normalize)
    check_vectors("anchors", anchors, "[M, D]", 2)
    if references is not None:
        check_vectors("references", references, "[N, D] or [C, K, D]", 2, 3)
        if references.shape[-1] != anchors.shape[1]:
            raise ValueError(
                f"references: expected last dimension {anchors.shape[1]}, the anchors', "
                f"got shape {list(references.shape)}"
            )
        if references.device != anchors.device:
            raise ValueError(
                f"references: expected on {anchors.device}, the anchors' device, got {references.device}"
            )
    indices, distances = op.nearest_references(
        anchors,
        anchors if references is None else references,
        k,
        normalize or "none",
        references is None,
        allow_tf32(),
    )
    return NearestReferences(indices, distances)
