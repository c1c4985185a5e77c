"""The CUDA kernels of sharded losses, run by the emulator: two shards give what one does."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import emulator
import numpy as np
import pytest
import torch
from emulated_loss import Pairs, Settings, dense
from test_emulated_similarity_loss import LOSSES, make_pairs
from torch import Tensor

from ccp_fast.ops.similarity_shard import ROW_PARTS, members_of
from ccp_fast.reference.pairs import normalise

SHARED = 227 * 1024  # bytes that a block may have: enough for both gradients in one pass


class Shard(NamedTuple):
    kernels: Any
    begin: int
    classes: int


def shards_of(pairs: Pairs, settings: Settings, cuts: list[int], shared_bytes: int = SHARED) -> list[Shard]:
    assert pairs.references is not None
    shards = []
    for begin, end in pairwise(cuts):
        proxies = pairs.references[begin:end].reshape(-1, pairs.references.shape[2]).contiguous()
        samples = (pairs.anchors.numpy(), "float32", (pairs.labels - begin).numpy(), 1)
        others = (proxies.numpy(), "float32", None, pairs.references.shape[1])
        rows, columns = (others, samples) if settings.proxy_rows else (samples, others)
        how = (settings.loss, settings.parameters, settings.normalize, "sum", False, True, 3, shared_bytes)
        kernels = emulator.load().SimilarityLoss(
            *rows, *columns, *how, hopper=False, missing_rows=0, missing_columns=0
        )
        shards.append(Shard(kernels, begin, end - begin))
    return shards


def distances_of_positives(pairs: Pairs, settings: Settings) -> np.ndarray:
    assert pairs.references is not None
    how = None if settings.normalize == "none" else settings.normalize
    samples, own = (normalise(x, how) for x in (pairs.anchors, pairs.references[pairs.labels]))
    return torch.linalg.vector_norm(samples[:, None] - own, dim=2).numpy()


@pytest.mark.parametrize(
    "shared_bytes", [SHARED, 0], ids=["both gradients in one pass", "one after the other"]
)
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_two_shards_are_one(loss: str, shared_bytes: int) -> None:
    """Rows are samples: each gathers a state from either shard."""
    settings = LOSSES[loss]._replace(reduction="none")
    pairs = make_pairs("proxies", 70, 79, 45)
    assert pairs.references is not None
    classes, per_class, _ = pairs.references.shape
    shards = shards_of(pairs, settings, [0, 7, classes], shared_bytes)
    positives = distances_of_positives(pairs, settings) if loss == "triplet" else None
    members = members_of(loss)
    states = np.stack([shard.kernels.states(members, positives) for shard in shards])
    truth, eager = dense(pairs, settings, torch.float64), dense(pairs, settings, torch.float32)
    counts = None
    if positives is not None:
        counts = sum(shard.kernels.counts(positives) for shard in shards)

    grad_anchors, grad_proxies = torch.zeros_like(pairs.anchors), []
    for shard in shards:
        parts = torch.from_numpy(shard.kernels.finish(states, classes * per_class))
        assert parts.shape == (ROW_PARTS, len(pairs.labels))
        assert_close(parts[0] + parts[1], truth.value, eager.value)
        rows, columns = shard.kernels.shard_backward(shard.kernels.row_state(), positives, counts)
        grad_anchors += torch.from_numpy(rows)
        grad_proxies.append(torch.from_numpy(columns).view(shard.classes, per_class, -1))
    assert_close(grad_anchors, truth.grad_anchors, eager.grad_anchors)
    assert truth.grad_references is not None
    assert_close(torch.cat(grad_proxies), truth.grad_references, eager.grad_references)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_rows_that_are_proxies_live_in_one_shard(loss: str) -> None:
    """Samples of classes elsewhere are negatives to all of a shard's proxies."""
    settings = LOSSES[loss]._replace(reduction="none", proxy_rows=True)
    pairs = make_pairs("proxies", 70, 79, 45)
    assert pairs.references is not None
    classes = len(pairs.references)
    truth, eager = dense(pairs, settings, torch.float64), dense(pairs, settings, torch.float32)
    members = members_of(loss)
    values = []
    for shard in shards_of(pairs, settings, [0, 7, classes]):
        value, *_ = shard.kernels.forward()  # positives are listed here, as the op does
        states = shard.kernels.states(members, None)
        parts = torch.from_numpy(shard.kernels.finish(states[None], len(pairs.labels)))
        assert_close(parts[:2].sum(), torch.from_numpy(value).double()[0], torch.from_numpy(value)[0])
        values.append(parts[0] + parts[1])
    assert_close(torch.cat(values), truth.value, eager.value)


def assert_close(got: Tensor, truth: Tensor, eager: Tensor) -> None:
    """As near as eager PyTorch in float32 times four, and 1e-6 of the largest number."""
    allowed = 4 * (eager.double() - truth).abs().max() + 1e-6 * truth.abs().max()
    assert torch.isfinite(got).all()
    assert (got.double() - truth).abs().max() <= allowed
