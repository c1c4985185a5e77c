"""The operators of sharded losses by themselves: fakes, errors, and states that merge to those of the whole."""

from __future__ import annotations

import pytest
import torch
from helpers import one_thread, vectors  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ccp_fast.ops import similarity_shard as ops
from ccp_fast.ops.similarity_loss import LOSS_NAMES, similarity_loss
from ccp_fast.ops.similarity_shard import LossSpec, Shard

PARAMETERS = {
    "contrastive_l2": [0.3, 0.9],
    "contrastive_cosine": [0.1, 0.2],
    "triplet": [0.2],
    "multi_similarity": [2.0, 10.0, 0.5],
    "proxy_nca": [1 / 9],
    "proxy_nca_original": [1 / 9],
    "proxy_anchor": [8.0, 0.1],
    "lifted_anchor": [1.0],
    "negative_lse": [1.0],
    "margin_softmax": [16.0, 0.35],
    "margin_softmax_arcface": [16.0, 0.5],
    "soft_triple": [20.0, 0.1, 0.05],
}


def spec_of(loss: str, proxy_rows: bool = False) -> LossSpec:
    return LossSpec(loss, PARAMETERS[loss], "unit", "sum", proxy_rows)


def shard_of(
    spec: LossSpec, samples: int = 9, classes: int = 5, per_class: int = 2, dtype: torch.dtype = torch.float64
) -> Shard:
    labels = torch.arange(samples) % (classes + 4) - 2  # some of classes elsewhere
    known = vectors(samples, per_class, seed=3, dtype=dtype).abs() if spec.needs_positives else None
    return Shard(
        vectors(samples, 6, dtype=dtype), vectors(classes, per_class, 6, seed=1, dtype=dtype), labels, known
    )


@pytest.mark.parametrize("proxy_rows", [False, True])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_fakes_tell_what_comes(loss: str, proxy_rows: bool) -> None:
    spec = spec_of(loss, proxy_rows)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        shard = shard_of(spec, dtype=dtype)
        if shard.positives is not None and dtype == torch.bfloat16:
            shard = shard._replace(positives=shard.positives.float())
        common = (spec.name, spec.parameters)
        library = torch.ops.ccp_fast
        kind = ("test_schema", "test_faketensor")
        arguments = (*shard, *common, spec.normalize, proxy_rows, False)
        torch.library.opcheck(library.similarity_shard_states.default, arguments, test_utils=kind)
        states, active = ops.states(shard, spec)
        assert states.shape[0] == ops.members_of(loss)
        torch.library.opcheck(library.similarity_finish.default, (states[None], 10, *common), test_utils=kind)
        row_state, _ = ops.finish(states[None], 10, spec)
        counts = None
        if shard.positives is not None:
            arguments = (*shard, *common, spec.normalize, False)
            torch.library.opcheck(library.similarity_shard_counts.default, arguments, test_utils=kind)
            counts = ops.counts(shard, spec)
        normalizer = torch.ones(2, dtype=torch.float64)
        one = torch.ones((), dtype=states.dtype)
        for need in ((True, True), (True, False), (False, True)):
            arguments = (
                one, *shard, counts, row_state, normalizer, active, *common, spec.normalize, proxy_rows, False, *need
            )  # fmt: skip
            torch.library.opcheck(library.similarity_shard_backward.default, arguments, test_utils=kind)


@given(
    st.sampled_from([name for name in LOSS_NAMES if name != "triplet"]),
    st.integers(0, 80),
    st.lists(st.integers(0, 40), min_size=1, max_size=4),
    st.integers(1, 4),
    st.integers(0, 10**6),
)
def test_states_of_any_cut_merge_to_the_whole(
    loss: str, samples: int, sizes: list[int], per_class: int, seed: int
) -> None:
    """Values and gradients of the sum over rows, for any shards in any order."""
    spec, classes = spec_of(loss), sum(sizes)
    anchors = vectors(samples, 5, seed=seed).requires_grad_()
    proxies = vectors(classes, per_class, 5, seed=seed + 1).requires_grad_()
    labels = torch.randint(0, max(classes, 1), (samples,), generator=torch.Generator().manual_seed(seed))
    if classes == 0:
        labels = labels[:0]
        anchors = anchors.detach()[:0].requires_grad_()
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    shards = [
        Shard(anchors.detach(), proxies.detach()[b : b + n], labels - b, None)
        for b, n in zip(begins, sizes, strict=True)
    ]
    parts = [ops.states(shard, spec) for shard in shards]
    row_state, rows = ops.finish(
        torch.stack([states for states, _ in parts[::-1]]), classes * per_class, spec
    )
    value = similarity_loss(
        anchors, proxies, labels, None, spec.name, spec.parameters, spec.normalize, "sum", False, False
    )
    torch.testing.assert_close(rows[:2].sum(), value.detach(), rtol=1e-10, atol=1e-10)
    value.backward()
    one, normalizer = torch.ones((), dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    grads: list[tuple[Tensor, Tensor]] = [
        ops.backward(one, shard, None, row_state, normalizer, active, spec, True, True)
        for shard, (_, active) in zip(shards, parts, strict=True)
    ]
    torch.testing.assert_close(sum(g[0] for g in grads), anchors.grad, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(torch.cat([g[1] for g in grads]), proxies.grad, rtol=1e-9, atol=1e-10)


def test_errors_name_the_argument() -> None:
    spec = spec_of("triplet")
    shard = shard_of(spec)
    for wrong, message in (
        (shard._replace(positives=None), "positives: expected with rows of samples"),
        (
            shard._replace(positives=torch.ones(9, 3, dtype=torch.float64)),
            r"positives: expected shape \[9, 2\]",
        ),
        (shard._replace(positives=torch.ones(9, 2)), r"positives: expected shape \[9, 2\] and the dtype"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.states(wrong, spec)
    states, active = ops.states(shard, spec)
    with pytest.raises(RuntimeError, match=r"states: expected shape \[parts, 4, rows\]"):
        ops.finish(states, 10, spec)
    row_state, _ = ops.finish(states[None], 10, spec)
    normalizer, one = torch.ones(2, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    with pytest.raises(RuntimeError, match="counts: expected with positives"):
        ops.backward(one, shard, None, row_state, normalizer, active, spec, True, True)
    counts = ops.counts(shard, spec)
    for wrong_state, wrong_normalizer, wrong_active, message in (
        (row_state[:2], normalizer, active, r"row_state: expected shape \[3, 9\]"),
        (row_state, normalizer.float(), active, "normalizer: expected two float64"),
        (row_state, normalizer, active[:3], "active: expected 10 bytes"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.backward(one, shard, counts, wrong_state, wrong_normalizer, wrong_active, spec, True, True)
    with pytest.raises(RuntimeError, match="grad_loss: expected one number, or one for each of 9 rows"):
        ops.backward(torch.ones(3), shard, counts, row_state, normalizer, active, spec, True, True)


on_a_gpu = pytest.param(
    "cuda",
    marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
)


@pytest.mark.parametrize("device", ["cpu", on_a_gpu])
@pytest.mark.parametrize("proxy_rows", [False, True])
@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_two_shards_are_the_whole_on(device: str, proxy_rows: bool, loss: str) -> None:
    """Positives that lie in the other shard included; in float32, against float64 of the whole."""
    spec = spec_of(loss, proxy_rows)
    anchors, proxies = vectors(70, 45), vectors(26, 3, 45, seed=1)
    labels = torch.randint(0, 26, (70,), generator=torch.Generator().manual_seed(2))
    known = None
    if spec.needs_positives:
        unit = torch.nn.functional.normalize
        known = torch.linalg.vector_norm(unit(anchors, dim=1)[:, None] - unit(proxies[labels], dim=2), dim=2)
    shards = [
        Shard(
            anchors.float().to(device),
            proxies[cut].float().contiguous().to(device),
            (labels - cut.start).to(device),
            None if known is None else known.float().to(device),
        )
        for cut in (slice(0, 7), slice(7, 26))
    ]
    parts = [ops.states(shard, spec) for shard in shards]
    if proxy_rows:
        finished = [ops.finish(states[None], 70, spec) for states, _ in parts]
        rows = [row_state for row_state, _ in finished]
        total = sum(values[:2].sum() for _, values in finished)
    else:
        row_state, values = ops.finish(torch.stack([states for states, _ in parts]), 78, spec)
        rows, total = [row_state, row_state], values[:2].sum()
    counts = None
    if known is not None:
        counts = ops.counts(shards[0], spec) + ops.counts(shards[1], spec)
    one = torch.ones((), device=device)
    normalizer = torch.ones(2, dtype=torch.float64, device=device)
    # One call for both gradients, or one for each, as where the first travels while the second is computed.
    for needs in ([(True, True)], [(True, False), (False, True)]):
        grads = [
            [ops.backward(one, shard, counts, row, normalizer, active, spec, *need) for need in needs]
            for shard, row, (_, active) in zip(shards, rows, parts, strict=True)
        ]
        grad_anchors = sum(g[0][0] for g in grads)
        grad_proxies = torch.cat([g[-1][1] for g in grads])

        whole, everyone = anchors.clone().requires_grad_(), proxies.clone().requires_grad_()
        options = (spec.name, spec.parameters, spec.normalize, "sum", proxy_rows, False)
        value = similarity_loss(whole, everyone, labels, None, *options)
        value.backward()
        assert isinstance(total, Tensor)
        torch.testing.assert_close(total.cpu(), value.detach(), rtol=1e-5, atol=1e-4)
        for got, want in ((grad_anchors, whole.grad), (grad_proxies, everyone.grad)):
            assert want is not None
            assert isinstance(got, Tensor)
            assert float((got.cpu().double() - want).abs().max()) < 2e-5 * float(want.abs().max()) + 1e-6
