"""The forward kernels of the similarity losses for Hopper, emulated: wgmma, copies of boxes, a task for each warp.

Backward is that of every GPU, and continues from what this forward has found.
"""

from __future__ import annotations

from typing import Any

import emulator
import numpy as np
import pytest
import torch
from emulated_loss import SIXTEEN_BITS, Pairs, Result, Settings, dense, emulate, kernels_of
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from test_emulated_similarity_loss import KINDS, LOSSES, assert_close, close_pairs, make_pairs

BFLOAT16 = torch.bfloat16


def forward(pairs: Pairs, settings: Settings, **options: Any) -> tuple[np.ndarray, ...]:
    return kernels_of(pairs, settings, precise=False, hopper=True, **options).forward()


def is_taken(pairs: Pairs, **options: Any) -> bool:
    """Where it is, no fragments are loaded."""
    module = emulator.load()
    before = module.matrix_loads()
    forward(pairs, LOSSES["multi_similarity"], **options)
    return module.matrix_loads() == before


def assert_is_right(pairs: Pairs, settings: Settings, *, slack: float = 1e-5, **options: Any) -> Result:
    got = emulate(pairs, settings, precise=False, hopper=True, **options)
    assert_close(got, pairs, settings, slack=slack)
    return got


def test_it_is_taken_where_it_can_be() -> None:
    for dtype in SIXTEEN_BITS:
        for d in (8, 72, 512):
            assert is_taken(make_pairs("labelled", 5, 9, d).to(dtype))
    pairs = make_pairs("labelled", 5, 9, 64).to(BFLOAT16)
    assert not is_taken(make_pairs("labelled", 5, 9, 516).to(BFLOAT16))  # rows off their boundaries
    assert not is_taken(make_pairs("labelled", 5, 9, 520).to(BFLOAT16))  # no room
    assert not is_taken(pairs, shared_bytes=40 * 1024)
    off = torch.cat([pairs.anchors.reshape(-1)[:4], pairs.anchors.reshape(-1)])[4:].reshape(5, 64)
    assert not is_taken(pairs._replace(anchors=off))
    floats = make_pairs("proxies", 5, 9, 64)
    for mixed in (floats, floats._replace(anchors=floats.anchors.bfloat16())):
        assert torch.equal(
            emulate(mixed, LOSSES["proxy_nca"], hopper=True).value, emulate(mixed, LOSSES["proxy_nca"]).value
        )


@pytest.mark.parametrize("kind", ["proxies", "proxies as rows", "memory"])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_reference(loss: str, kind: str) -> None:
    """Several tiles of rows or of columns, the last of each not full, nor the last chunk of components."""
    settings = LOSSES[loss]._replace(proxy_rows=kind.endswith("rows"))
    assert_is_right(make_pairs(kind, 37, 140, 72).to(BFLOAT16), settings, multiprocessors=1)


@given(
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from(KINDS),
    st.tuples(st.integers(1, 200), st.integers(3, 200), st.integers(1, 20), st.integers(1, 4)),
    st.sampled_from(["none", "unit", "ball"]),
    st.sampled_from(["sum", "none", "anchor_mean", "mean", "active_mean"]),
    st.sampled_from([torch.bfloat16, torch.float16]),
    st.integers(1, 6),
    st.integers(0, 10**6),
)
@examples(max_examples=15)
def test_equals_the_reference_at_any_shape(
    loss: str, kind: str, shape: tuple[int, int, int, int], normalize: str, reduction: str, dtype: torch.dtype,
    processors: int, seed: int,
) -> None:  # fmt: skip
    m, n, eights, k = shape
    settings = LOSSES[loss]._replace(
        normalize=normalize, reduction=reduction, proxy_rows=kind.endswith("rows")
    )
    pairs = make_pairs(kind, m, n, 8 * eights, k, seed).to(dtype)
    assert_is_right(pairs, settings, multiprocessors=processors, seed=seed)


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("d", [8, 64, 200, 512])
def test_any_number_of_components(d: int, dtype: torch.dtype) -> None:
    """The value is that of the rounded numbers to float's precision; one round of the ring and several."""
    pairs, settings = make_pairs("labelled", 20, 200, d).to(dtype), LOSSES["multi_similarity"]
    got = assert_is_right(pairs, settings, multiprocessors=1)
    assert got.value.double() == pytest.approx(dense(pairs, settings, torch.float64).value, rel=1e-5)


@pytest.mark.parametrize("k", [1, 5, 11, 17, 32])
@pytest.mark.parametrize("loss", ["margin_softmax", "soft_triple"])
def test_groups_of_any_size(loss: str, k: int) -> None:
    """Copies begin where whole groups do."""
    assert_is_right(make_pairs("proxies", 37, 151, 24, k).to(BFLOAT16), LOSSES[loss])


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_close_pairs(dtype: torch.dtype) -> None:
    """One step of the last place apart: from the differences, as without wgmma."""
    pairs, settings = close_pairs()
    anchors = pairs.anchors.to(dtype)
    nearest = anchors.view(torch.int16) + (torch.rand_like(pairs.anchors) < 0.3)
    pairs = pairs._replace(anchors=anchors, references=nearest.short().view(dtype)[:, None])
    value, *_ = forward(pairs, settings)
    assert value[0] == pytest.approx(dense(pairs, settings, torch.float64).value.item(), rel=1e-5)


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**60, 2.0**100])
@pytest.mark.parametrize("loss", ["contrastive_l2", "multi_similarity", "soft_triple"])
def test_unit_vectors_of_any_length(loss: str, scale: float) -> None:
    """Products of the raw vectors leave float's range; those of the normalised ones do not."""
    pairs = make_pairs("proxies", 20, 70, 40).to(BFLOAT16)
    assert pairs.references is not None
    settings = LOSSES[loss]._replace(normalize="unit")
    scaled = pairs._replace(anchors=pairs.anchors * scale, references=pairs.references * scale)
    (value, *_), (plain, *_) = forward(scaled, settings), forward(pairs, settings)
    if scale > 1e-12:  # shorter vectors count as zero
        assert value[0] == pytest.approx(plain[0], rel=1e-5)
    assert np.isfinite(value).all()


@pytest.mark.parametrize("loss", ["contrastive_l2", "multi_similarity", "soft_triple", "triplet"])
def test_the_order_of_threads_and_blocks_changes_no_bit(loss: str) -> None:
    pairs = make_pairs("labelled", 70, 200, 72).to(BFLOAT16)
    first, *others = (forward(pairs, LOSSES[loss], multiprocessors=2, seed=seed) for seed in range(4))
    for other in others:
        for x, y in zip(first, other, strict=True):
            assert np.array_equal(x, y)


def test_a_step_takes_no_more_launches() -> None:
    module = emulator.load()
    before = module.launches()
    forward(make_pairs("proxies", 17, 300, 24).to(BFLOAT16), LOSSES["multi_similarity"])
    assert module.launches() - before == 2


def test_every_barrier_is_needed() -> None:
    """Left out, each wait and each signal changes a number, stops everything, or lets both warpgroups multiply."""
    module = emulator.load()
    # The ring goes round several times, or runs far ahead of those who look at the tiles.
    small, large = 128 * 256 + 2 * 64 * 128 + 17 * 1024, 227 * 1024
    cases = [
        (make_pairs("proxies", 20, 400, 72).to(BFLOAT16), LOSSES["multi_similarity"], small),
        (make_pairs("proxies", 20, 700, 24).to(BFLOAT16), LOSSES["multi_similarity"], large),
        (make_pairs("proxies", 70, 150, 72).to(BFLOAT16), LOSSES["soft_triple"], small),
        (make_pairs("memory", 130, 70, 72).to(BFLOAT16), LOSSES["contrastive_l2"], small),
    ]

    def result(case: tuple[Pairs, Settings, int], seed: int) -> tuple[np.ndarray, ...]:
        pairs, settings, shared_bytes = case
        return forward(pairs, settings, multiprocessors=1, seed=seed, shared_bytes=shared_bytes)

    right = [result(case, 0) for case in cases]

    def differs(seed: int) -> bool:
        before = module.products_side_by_side()
        return any(
            module.products_side_by_side() != before or not np.array_equal(x, y)
            for case, expected in zip(cases, right, strict=True)
            for x, y in zip(result(case, seed), expected, strict=True)
        )

    assert is_taken(cases[0][0], shared_bytes=small)
    assert not is_taken(cases[0][0], shared_bytes=small - 8 * 1024)  # with one stage fewer it is not
    module.let_lag(True)
    try:
        assert emulator.unneeded_barriers(differs) == []
    finally:
        module.let_lag(False)


def test_columns_beyond_2_31_components() -> None:
    """The columns before the last few are not there at all: only the block of the last ones runs."""
    dim, few = 512, 50
    pairs, settings = make_pairs("labelled", 5, few, dim).to(BFLOAT16), LOSSES["contrastive_l2"]
    missing = 3 * 2**31 // dim // 64 * 64
    *_, active = forward(pairs, settings)
    with emulator.only_end_blocks(0, 1):
        *_, far = forward(pairs, settings, multiprocessors=missing // 64 + 1, missing_columns=missing)
    assert (far[missing:] == active).all()


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_no_undefined_behaviour(loss: str) -> None:
    """A process that shows any ends at once with UBSan's message."""
    pairs = make_pairs("proxies", 37, 140, 72).to(BFLOAT16)
    assert_is_right(pairs, LOSSES[loss], sanitize=True)
