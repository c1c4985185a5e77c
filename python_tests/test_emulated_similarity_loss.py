"""The CUDA kernels of the similarity losses, their own source, run by the emulator: equal to the fp64 reference."""

from __future__ import annotations

from typing import Any

import emulator
import pytest
import torch
from emulated_loss import SIXTEEN_BITS, Pairs, Result, Settings, dense, emulate
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from ccp_fast.functional import contrastive

# Name, parameters, normalisation, reduction: each loss in its customary form.
LOSSES = {
    "contrastive_l2": Settings("contrastive_l2", [0.3, 0.9], "ball", "active_mean"),
    "contrastive_cosine": Settings("contrastive_cosine", [0.1, 0.2]),
    "triplet": Settings("triplet", [0.2], "ball", "active_mean"),
    "multi_similarity": Settings("multi_similarity", [2.0, 10.0, 0.5]),
    "proxy_nca": Settings("proxy_nca", [1 / 9]),
    "proxy_nca_original": Settings("proxy_nca_original", [1 / 9]),
    "proxy_anchor": Settings("proxy_anchor", [8.0, 0.1], reduction="mean"),
    "lifted_anchor": Settings("lifted_anchor", [1.0], "none", "mean"),
    "negative_lse": Settings("negative_lse", [1.0], "unit", "none"),
    "margin_softmax": Settings("margin_softmax", [16.0, 0.35]),
    "margin_softmax_arcface": Settings("margin_softmax_arcface", [16.0, 0.5]),
    "soft_triple": Settings("soft_triple", [20.0, 0.1, 0.05]),
}
KINDS = ("proxies", "proxies as rows", "labelled", "labelled as rows", "batch", "memory", "memory as rows")


def make_pairs(kind: str, m: int, n: int, d: int, k: int = 3, seed: int = 0) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    classes = max(1, n // k)
    anchors = torch.randn(m, d, generator=generator) / d**0.5
    labels = torch.randint(0, classes, (m,), generator=generator)
    if kind.startswith("proxies"):
        return Pairs(anchors, torch.randn(classes, k, d, generator=generator) / d**0.5, labels)
    if kind == "batch":
        return Pairs(anchors, None, labels)
    references = torch.randn(n, d, generator=generator) / d**0.5
    # Any 64-bit numbers may be labels, and some classes have no reference.
    names = torch.randint(-(2**62), 2**62, (classes + 3,), generator=generator)
    labels, others = names[labels + 3], names[torch.randint(0, classes, (n,), generator=generator)]
    if kind.startswith("memory"):  # the anchors before them, each without its own copy
        return Pairs(anchors, torch.cat([anchors, references]), labels, torch.cat([labels, others]), True)
    return Pairs(anchors, references, labels, others)


def assert_close(got: Result, pairs: Pairs, settings: Settings, *, slack: float = 1e-6) -> None:
    """As near to the truth as eager PyTorch is in float32 times four, and `slack` of the largest number.

    Gradients of 16 bits are rounded once more, and their coefficients to tf32.
    """
    truth, eager = (dense(pairs, settings, dtype) for dtype in (torch.float64, torch.float32))
    for name, x, exact, plain in zip(Result._fields, got, truth, eager, strict=True):
        if exact is None:
            continue
        assert torch.isfinite(x).all(), name
        largest = exact.abs().max()
        error, allowed = (
            (x.double() - exact).abs().max(),
            4 * (plain.double() - exact).abs().max()
            + (slack + (torch.finfo(x.dtype).eps if x.dtype in SIXTEEN_BITS else 0)) * largest,
        )
        assert error <= allowed, f"{name}: off by {error:.3g}, allowed {allowed:.3g} of {largest:.3g}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_the_reference(loss: str, kind: str) -> None:
    """With both gradients in one pass, and each in one of its own."""
    settings = LOSSES[loss]._replace(proxy_rows=kind.endswith("rows"))
    pairs = make_pairs(kind, 37, 79, 45)
    for shared_bytes in (227 * 1024, 0):
        assert_close(emulate(pairs, settings, shared_bytes=shared_bytes), pairs, settings)


@given(
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from(KINDS),
    st.tuples(st.integers(1, 150), st.integers(3, 150), st.integers(1, 140), st.integers(1, 4)),
    st.sampled_from(["none", "unit", "ball"]),
    st.sampled_from(["sum", "none", "anchor_mean", "mean", "active_mean"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.booleans(),
    st.integers(1, 12),
    st.integers(0, 10**6),
)
@examples(max_examples=60)
def test_equals_the_reference_at_any_shape(
    loss: str, kind: str, shape: tuple[int, int, int, int], normalize: str, reduction: str, dtype: torch.dtype,
    in_one_pass: bool, processors: int, seed: int,
) -> None:  # fmt: skip
    m, n, d, k = shape
    settings = LOSSES[loss]._replace(
        normalize=normalize, reduction=reduction, proxy_rows=kind.endswith("rows")
    )
    pairs = make_pairs(kind, m, n, max(2, d), k, seed).to(dtype)
    shared_bytes = 227 * 1024 if in_one_pass else 0
    got = emulate(pairs, settings, multiprocessors=processors, seed=seed, shared_bytes=shared_bytes)
    assert_close(got, pairs, settings, slack=1e-5)


@pytest.mark.parametrize("d", [1, 4, 32, 36, 129, 300, 513, 1030])
def test_any_number_of_components(d: int) -> None:
    """Whole and broken chunks; owned items kept and not; gradients in one block's registers and in several's."""
    pairs = make_pairs("labelled", 70, 133, d)
    settings = LOSSES["multi_similarity"]._replace(normalize="none")
    assert_close(emulate(pairs, settings, multiprocessors=3), pairs, settings, slack=3e-6)


@pytest.mark.parametrize("k", [1, 5, 11, 16, 17, 31, 32])
@pytest.mark.parametrize("loss", ["margin_softmax", "soft_triple"])
def test_groups_of_any_size(loss: str, k: int) -> None:
    """A warp's 32 columns hold as many whole groups as fit; several tiles of them, and a last one that is not full."""
    pairs = make_pairs("proxies", 37, 151, 20, k)
    for processors in (1, 5):
        assert_close(emulate(pairs, LOSSES[loss], multiprocessors=processors), pairs, LOSSES[loss])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("d", [32, 37])
@pytest.mark.parametrize("loss", ["contrastive_l2", "proxy_nca", "triplet", "soft_triple"])
def test_sixteen_bit_embeddings(loss: str, d: int, dtype: torch.dtype) -> None:
    """One tensor-core product is exact for them: the loss is as good as from floats, gradients are rounded once."""
    pairs = make_pairs("proxies", 37, 79, d).to(dtype)
    got, truth = emulate(pairs, LOSSES[loss], precise=False), dense(pairs, LOSSES[loss], torch.float64)
    assert got.grad_anchors.dtype == dtype
    assert abs(got.value.double() - truth.value) <= 1e-6 * truth.value.abs()
    for x, exact in ((got.grad_anchors, truth.grad_anchors), (got.grad_references, truth.grad_references)):
        assert x is not None
        assert exact is not None
        assert (x.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_embeddings_and_proxies_of_different_types() -> None:
    pairs = make_pairs("proxies", 37, 79, 40)
    mixed = pairs._replace(anchors=pairs.anchors.bfloat16())
    got, truth = emulate(mixed, LOSSES["proxy_nca"]), dense(mixed, LOSSES["proxy_nca"], torch.float64)
    assert got.grad_anchors.dtype == torch.bfloat16
    assert got.grad_references is not None
    assert truth.grad_references is not None
    assert (
        got.grad_references - truth.grad_references
    ).abs().max() <= 2e-6 * truth.grad_references.abs().max()


def test_tf32_is_coarser_and_three_products_are_not() -> None:
    pairs, settings = make_pairs("proxies", 37, 79, 128), LOSSES["contrastive_cosine"]
    truth = dense(pairs, settings, torch.float64).grad_anchors
    precise, coarse = (
        (emulate(pairs, settings, precise=precise).grad_anchors - truth).abs().max() / truth.abs().max()
        for precise in (True, False)
    )
    assert precise < 1e-6
    assert 1e-5 < coarse < 2e-3


def errors(pairs: Pairs, settings: Settings, **options: Any) -> list[tuple[float, float]]:
    """The kernels' and eager PyTorch's, of the loss and the gradients, relative to the largest number."""
    got = emulate(pairs, settings, **options)
    truth, eager = (dense(pairs, settings, dtype) for dtype in (torch.float64, torch.float32))
    return [
        tuple(float((x.double() - exact).abs().max() / exact.abs().max()) for x in (ours, plain))  # type: ignore[misc]
        for ours, exact, plain in zip(got, truth, eager, strict=True)
        if ours is not None and exact is not None and plain is not None
    ]


@pytest.mark.parametrize("shared_bytes", [227 * 1024, 0])
def test_gradients_over_many_columns_are_as_precise_as_eager(shared_bytes: int) -> None:
    """Terms of one sign, where sums cut off by tensor cores are biased: 5e-6 and more if one went through all tiles."""
    generator = torch.Generator().manual_seed(0)
    anchors, references = (torch.rand(n, 32, generator=generator) + 0.5 for n in (9, 3000))
    pairs = Pairs(anchors, references, torch.arange(9), torch.full((3000,), 9))
    settings = Settings("contrastive_cosine", [0.0, -1.0], "none", "sum")
    with emulator.sums_cut_off():
        for ours, eager in errors(pairs, settings, multiprocessors=1, shared_bytes=shared_bytes):
            assert ours <= max(eager, 1e-6)


def test_similarities_of_many_components_are_as_precise_as_eager() -> None:
    """Of like vectors: a product that is cut off in every step of 1,024 components is off by 1e-5."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(1024, generator=generator)
    anchors, references = (centre + 0.3 * torch.randn(n, 1024, generator=generator) for n in (9, 40))
    pairs = Pairs(anchors, references, torch.arange(9), torch.full((40,), 9))
    settings = Settings("multi_similarity", [2.0, 1.0, 0.5], "unit", "sum")
    with emulator.sums_cut_off():
        for ours, eager in errors(pairs, settings):
            assert ours <= 2 * eager + 6e-7


@pytest.mark.parametrize("loss", LOSSES)
def test_the_order_of_threads_and_blocks_changes_no_bit(loss: str) -> None:
    settings, pairs = LOSSES[loss], make_pairs("labelled", 70, 200, 40)
    first, *others = (emulate(pairs, settings, multiprocessors=4, seed=seed) for seed in range(4))
    for other in others:
        for x, y in zip(first, other, strict=True):
            assert x is not None
            assert y is not None
            assert torch.equal(x, y)


def test_every_barrier_is_needed() -> None:
    """Left out, each lets some order of the threads give other numbers."""
    # Quick ones first: the first that differs is enough.
    cases = [
        # Both gradients in one pass: with close pairs, listed items, many blocks' parts, a group at a time, two
        # streamed tiles and positives; then each in one of its own.
        (*close_pairs(), 1),
        (make_pairs("proxies", 40, 150, 20), LOSSES["contrastive_l2"], 1),
        (make_pairs("proxies", 5, 600, 70), LOSSES["multi_similarity"], 9),
        (make_pairs("proxies", 70, 150, 40), LOSSES["soft_triple"], 4),
        (make_pairs("batch", 70, 150, 40), LOSSES["triplet"], 4),
        (*close_pairs(dim=140), 1),
        (make_pairs("proxies", 150, 150, 70), LOSSES["contrastive_l2"], 1),
    ]

    def result(case: tuple[Pairs, Settings, int], seed: int) -> Result:
        pairs, settings, processors = case
        return emulate(pairs, settings, multiprocessors=processors, seed=seed)

    right = [result(case, 0) for case in cases]
    # Long enough for several blocks.
    flags = (torch.rand(5003, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8).numpy()

    def differs(seed: int) -> bool:
        emulator.load().set_seed(seed)
        if emulator.load().list_active(flags).tolist() != flags.nonzero()[0].tolist():
            return True
        return any(
            not torch.equal(x, y)
            for case, expected in zip(cases, right, strict=True)
            for x, y in zip(expected, result(case, seed), strict=True)
            if x is not None and y is not None
        )

    assert not emulator.unneeded_barriers(differs)


@pytest.mark.parametrize("scale", [1e-20, 1e-9, 1e9, 1e19, 1e30])
@pytest.mark.parametrize("loss", ["contrastive_l2", "multi_similarity", "proxy_nca", "soft_triple"])
def test_unit_vectors_of_any_length(loss: str, scale: float) -> None:
    """Products of the raw vectors leave float's range; those of the normalised ones do not."""
    pairs = make_pairs("proxies", 20, 70, 40)
    settings = LOSSES[loss]._replace(normalize="unit")
    scaled = pairs._replace(anchors=pairs.anchors * scale, references=pairs.references * scale)  # type: ignore[operator]
    got, plain = emulate(scaled, settings), emulate(pairs, settings)
    for x in got:
        assert x is not None
        assert torch.isfinite(x).all()
    if scale > 1e-12:  # shorter vectors count as zero
        assert got.value == pytest.approx(plain.value, rel=1e-5)
        torch.testing.assert_close(got.grad_anchors * scale, plain.grad_anchors, rtol=1e-3, atol=1e-6)


def close_pairs(dim: int = 64) -> tuple[Pairs, Settings]:
    generator = torch.Generator().manual_seed(0)
    anchors = torch.randn(30, dim, generator=generator)
    noise = torch.randn(30, 1, dim, generator=generator) * 1e-5
    settings = Settings("contrastive_l2", [0.0, 0.0], "none", "mean")
    return Pairs(anchors, anchors[:, None] + noise, torch.arange(30)), settings


def test_distances_of_close_pairs_are_exact() -> None:
    """‖a‖² + ‖r‖² - 2a·r has no correct digit here."""
    pairs, settings = close_pairs()
    truth = dense(pairs, settings, torch.float64)
    assert emulate(pairs, settings).value.double() == pytest.approx(truth.value, rel=1e-5)


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_gradients_of_close_pairs(device: str) -> None:
    """They point along a - r, which eager PyTorch has before it rounds."""
    pairs, settings = close_pairs()
    if device == "emulated":
        got = emulate(pairs, settings)
    else:
        assert pairs.references is not None
        anchors, references = (x.clone().requires_grad_() for x in (pairs.anchors, pairs.references))
        value = contrastive(
            anchors,
            references,
            pairs.labels,
            pos_margin=0.0,
            neg_margin=0.0,
            normalize=None,
            reduction="mean",
        )
        value.backward()
        assert anchors.grad is not None
        got = Result(value.detach().reshape(1), anchors.grad, references.grad)
    assert_close(got, pairs, settings, slack=1e-5)


@pytest.mark.parametrize("normalize", ["none", "unit", "ball"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [33, 140])
def test_identical_vectors_have_distance_zero_and_no_gradient(
    dim: int, dtype: torch.dtype, normalize: str
) -> None:
    """Scaled alike, too, where a fused product would leave 1e-8 of rounding and a direction with it."""
    anchors = torch.randn(90, dim, generator=torch.Generator().manual_seed(0)).to(dtype)
    pairs = Pairs(anchors, anchors[:, None].clone(), torch.arange(90))
    for shared_bytes in (227 * 1024, 0):
        for proxy_rows in (False, True):
            settings = Settings("contrastive_l2", [0.0, 0.0], normalize, "sum", proxy_rows)
            got = emulate(pairs, settings, shared_bytes=shared_bytes)
            assert got.value == 0
            assert not got.grad_anchors.any()
            assert got.grad_references is not None
            assert not got.grad_references.any()


@pytest.mark.parametrize("normalize", ["unit", "ball"])
def test_triplets_with_identical_positives(normalize: str) -> None:
    """All are violated. The positives, at distance 0, pull in no direction; the negatives push."""
    anchors = 2.0 + torch.randn(20, 40, generator=torch.Generator().manual_seed(0))
    pairs = Pairs(anchors, anchors[:, None].clone(), torch.arange(20))
    settings = Settings("triplet", [3.0], normalize, "sum")
    got, truth = emulate(pairs, settings), dense(pairs, settings, torch.float64)
    assert got.value.double() == pytest.approx(truth.value, rel=1e-6)
    torch.testing.assert_close(got.grad_anchors.double(), truth.grad_anchors, rtol=0, atol=1e-5)


def test_labels_of_no_class_match_nothing() -> None:
    """The GPU is not asked, and so not waited for: such an anchor has negatives only."""
    pairs = make_pairs("proxies", 20, 30, 16)
    settings = Settings("contrastive_cosine", [0.0, 0.2], "unit", "none")
    outside = pairs._replace(
        labels=torch.where(torch.arange(20) < 2, torch.tensor([10**15, -1]).repeat(10), pairs.labels)
    )
    got, plain = emulate(outside, settings).value, emulate(pairs, settings).value
    assert torch.isfinite(got).all()
    assert torch.equal(got[2:], plain[2:])
    assert emulate(outside, LOSSES["triplet"]).value.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_no_undefined_behaviour(loss: str) -> None:
    """A process that shows any ends at once with UBSan's message."""
    for kind in KINDS:
        settings = LOSSES[loss]._replace(proxy_rows=kind.endswith("rows"))
        for dtype, shared_bytes in (
            (torch.float32, 227 * 1024),
            (torch.float32, 0),
            (torch.bfloat16, 227 * 1024),
        ):
            pairs = make_pairs(kind, 37, 79, 45).to(dtype)
            assert_close(emulate(pairs, settings, sanitize=True, shared_bytes=shared_bytes), pairs, settings)
