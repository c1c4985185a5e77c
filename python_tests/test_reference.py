"""The reference losses: derivatives, equivalent ways to say the same, extremes, bad input."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import one_thread, vectors  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ccp_fast import functional, reference

LOSSES: dict[str, Callable[..., Tensor]] = {
    "contrastive_l2": reference.contrastive,
    "contrastive_cosine": lambda *args, **kw: reference.contrastive(*args, distance="cosine", **kw),
    "triplet": lambda *args, **kw: reference.triplet(*args, margin=0.5, **kw),
    "multi_similarity": reference.multi_similarity,
    "proxy_nca": reference.proxy_nca,
    "proxy_nca_original": lambda *args, **kw: reference.proxy_nca(*args, variant="original", **kw),
    "proxy_anchor": reference.proxy_anchor,
    "margin_softmax": lambda *args, **kw: reference.margin_softmax(*args, kind="arcface", scale=4.0, **kw),
    "soft_triple": lambda *args, **kw: reference.soft_triple(*args, scale=4.0, margin=0.2, **kw),
}
REDUCTIONS = ["none", "sum", "mean", "active_mean", "anchor_mean"]
M, C, K, D = 7, 3, 2, 5
LABELS = torch.tensor([0, 0, 2, 1, 1, 0, 2])


@pytest.mark.parametrize("name", [n for n in functional.__all__ if n[0].islower()])
def test_it_is_called_as_the_fused_function_is(name: str) -> None:
    """With the same defaults; annotations may be wider there."""
    ours, fused = (
        [(p.name, p.kind, p.default) for p in inspect.signature(getattr(module, name)).parameters.values()]
        for module in (reference, functional)
    )
    assert ours == fused


def layouts() -> dict[str, tuple[tuple[Tensor, ...], Callable[..., tuple[Any, ...]]]]:
    """Differentiable inputs, and from them the positional arguments of a loss."""
    emb, proxies, others = vectors(M, D), vectors(C, K, D, seed=1), vectors(4, D, seed=2)
    other_labels = torch.tensor([2, 0, 0, 7])
    return {
        "batch": ((emb,), lambda x: (x, None, LABELS)),
        "labelled": ((emb, others), lambda x, r: (x, r, LABELS, other_labels)),
        "proxies": ((emb, proxies), lambda x, p: (x, p, LABELS)),
    }


# ---- derivatives


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("anchor", ["sample", "proxy"])
@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("loss", LOSSES)
def test_first_derivative(loss: str, layout: str, anchor: str, reduction: str) -> None:
    inputs, arguments = layouts()[layout]
    inputs = tuple(x.requires_grad_() for x in inputs)
    assert gradcheck(
        lambda *x: LOSSES[loss](*arguments(*x), anchor=anchor, reduction=reduction), inputs, fast_mode=True
    )


@pytest.mark.parametrize("normalize", ["ball", "unit", None])
@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("loss", LOSSES)
def test_second_derivative(loss: str, layout: str, normalize: str | None) -> None:
    inputs, arguments = layouts()[layout]
    inputs = tuple(x.requires_grad_() for x in inputs)
    mild = {"alpha": 2.0} if loss == "proxy_anchor" else {"beta": 3.0} if loss == "multi_similarity" else {}
    assert gradgradcheck(
        lambda *x: LOSSES[loss](*arguments(*x), normalize=normalize, **mild), inputs, fast_mode=True
    )


# ---- the same thing said differently


@pytest.mark.parametrize("anchor", ["sample", "proxy"])
@pytest.mark.parametrize("loss", LOSSES)
def test_class_major_proxies_are_labelled_references(loss: str, anchor: str) -> None:
    # To these the proxies of a class are one, and labelled references are not.
    k = 1 if loss in ("margin_softmax", "soft_triple") else K
    x, proxies = vectors(M, D), vectors(C, k, D, seed=1)
    labels = torch.arange(C).repeat_interleave(k)
    a = LOSSES[loss](x, proxies, LABELS, anchor=anchor, reduction="none")
    b = LOSSES[loss](x, proxies.flatten(0, 1), LABELS, labels, anchor=anchor, reduction="none")
    torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert a.shape == (M if anchor == "sample" else C * k,)


@pytest.mark.parametrize("loss", LOSSES)
def test_proxies_as_anchors_exchange_the_roles(loss: str) -> None:
    x, others, other_labels = vectors(M, D), vectors(4, D, seed=2), torch.tensor([2, 0, 0, 7])
    a = LOSSES[loss](x, others, LABELS, other_labels, anchor="proxy", reduction="none")
    b = LOSSES[loss](others, x, other_labels, LABELS, anchor="sample", reduction="none")
    torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_is_its_own_reference_without_the_diagonal(loss: str) -> None:
    """Row i against the other samples."""
    x = vectors(M, D)
    rows = LOSSES[loss](x, None, LABELS, anchor="sample", reduction="none")
    for i in range(M):
        others = torch.arange(M) != i
        alone = LOSSES[loss](
            x[i : i + 1], x[others], LABELS[i : i + 1], LABELS[others], anchor="sample", reduction="none"
        )
        torch.testing.assert_close(rows[i : i + 1], alone)


@given(
    seed=st.integers(0, 2**31), rows=st.integers(1, 9), columns=st.integers(0, 11), classes=st.integers(1, 5)
)
@settings(max_examples=25, deadline=None)
def test_reductions_agree_and_order_does_not_matter(seed: int, rows: int, columns: int, classes: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x, r = vectors(rows, D, seed=seed), vectors(columns, D, seed=seed + 1)
    y, c = (torch.randint(classes, (n,), generator=random) for n in (rows, columns))
    shuffle = torch.randperm(columns, generator=random)
    for loss in LOSSES.values():
        value = {how: loss(x, r, y, c, anchor="sample", reduction=how) for how in REDUCTIONS}
        assert value["none"].shape == (rows,)
        torch.testing.assert_close(value["sum"], value["none"].sum())
        torch.testing.assert_close(value["anchor_mean"], value["none"].mean())
        for how in REDUCTIONS:
            torch.testing.assert_close(
                value[how], loss(x, r[shuffle], y, c[shuffle], anchor="sample", reduction=how)
            )


def test_divisors() -> None:
    """Two samples of class 0, one of class 1, on a line; distances 3 (same), 4 and 1 (different)."""
    x, y = torch.tensor([[0.0], [3.0], [4.0]]), torch.tensor([0, 0, 1])
    value = {
        how: float(reference.contrastive(x, None, y, neg_margin=2, normalize=None, reduction=how))
        for how in ("sum", "mean", "active_mean", "anchor_mean")
    }
    assert value == pytest.approx(
        {"sum": 2 * 3 + 2 * 1, "mean": (6 + 2) / 9, "active_mean": 6 / 2 + 2 / 2, "anchor_mean": 8 / 3}
    )
    value = {
        how: float(reference.triplet(x, None, y, margin=0, normalize=None, reduction=how))
        for how in ("sum", "mean", "active_mean", "anchor_mean")
    }
    assert value == pytest.approx({"sum": 2.0, "mean": 2 / 2, "active_mean": 2 / 1, "anchor_mean": 2 / 3})


def test_rows_that_take_part() -> None:
    """Three proxies, samples of class 0 only: one row with positives, two with negatives."""
    x, proxies, y = vectors(4, D), vectors(3, 1, D, seed=1), torch.zeros(4, dtype=torch.int64)
    rows = reference.proxy_anchor(x, proxies, y, reduction="none")
    mean = reference.proxy_anchor(x, proxies, y)
    active = reference.proxy_anchor(x, proxies, y, reduction="active_mean")
    torch.testing.assert_close(mean, rows[0] + (rows[1] + rows[2]) / 3)
    torch.testing.assert_close(active, rows[0] + (rows[1] + rows[2]) / 2)


# ---- extremes


def extreme_batches() -> dict[str, tuple[Tensor, Tensor]]:
    e = torch.eye(4)
    one_class, many = torch.zeros(4, dtype=torch.int64), torch.arange(4)
    pairs = torch.tensor([0, 0, 1, 1])
    return {
        "zero vectors": (torch.zeros(4, 4), pairs),
        "one zero vector": (torch.cat([torch.zeros(1, 4), e[1:]]), pairs),
        "duplicates": (e[:1].expand(4, 4), pairs),
        "opposed": (torch.stack([e[0], -e[0], e[0], -e[0]]), pairs),
        "tiny": (e * 1e-30, pairs),
        "huge": (e * 1e15, pairs),
        "one class": (e, one_class),
        "no positives": (e, many),
        "one sample": (e[:1], one_class[:1]),
        "empty": (e[:0], one_class[:0]),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("normalize", ["ball", "unit"])
@pytest.mark.parametrize("batch", extreme_batches())
@pytest.mark.parametrize("loss", LOSSES)
def test_everything_is_finite(loss: str, batch: str, normalize: str, dtype: torch.dtype) -> None:
    sharp = {
        "multi_similarity": {"alpha": 1e4, "beta": 1e4},
        "proxy_anchor": {"alpha": 1e4},
        "proxy_nca": {"temperature": 1e-4},
        "proxy_nca_original": {"temperature": 1e-4},
    }.get(loss, {})
    x, y = extreme_batches()[batch]
    x = x.to(dtype).requires_grad_()
    proxies = torch.eye(4, dtype=dtype)[:, None].requires_grad_()
    for value in (
        LOSSES[loss](x, None, y, normalize=normalize, **sharp),
        LOSSES[loss](x, proxies, y, normalize=normalize, **sharp),
        LOSSES[loss](x, proxies, y, normalize=normalize, anchor="proxy", **sharp),
    ):
        first = torch.autograd.grad(value, x, create_graph=True)[0]
        second = torch.autograd.grad(first.sum(), x, allow_unused=True)[0]
        assert value.isfinite()
        assert first.isfinite().all()
        assert second is None or second.isfinite().all()


def test_distance_is_exact_near_zero() -> None:
    """Where ‖x‖² + ‖y‖² − 2x·y has no digit left."""
    x = torch.tensor([[1.0, 0.0], [1.0, 1e-6]])
    value = reference.contrastive(x, None, torch.tensor([0, 0]), normalize=None)
    torch.testing.assert_close(value, torch.tensor(1e-6), rtol=1e-6, atol=0)


def test_half_types_are_computed_in_float32() -> None:
    x, proxies = (
        vectors(M, D, dtype=torch.bfloat16).requires_grad_(),
        vectors(C, K, D, seed=1, dtype=torch.float32),
    )
    value = reference.proxy_nca(x, proxies, LABELS)
    assert value.dtype == torch.float32
    assert torch.equal(value, reference.proxy_nca(x.float(), proxies, LABELS))
    value.backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


# ---- bad input


EMB, PROXIES = torch.zeros(7, 5), torch.zeros(3, 2, 5)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            (EMB[0], None, LABELS),
            {},
            r"anchors: expected floating point of 2 dimensions, got float32 of shape \[5\]",
        ),
        ((EMB.long(), None, LABELS), {}, "anchors: expected floating point"),
        (
            (EMB, None, LABELS.float()),
            {},
            r"labels: expected int64 of shape \[7\], got float32 of shape \[7\]",
        ),
        (
            (EMB, None, LABELS[:, None]),
            {},
            r"labels: expected int64 of shape \[7\], got int64 of shape \[7, 1\]",
        ),
        ((EMB, None, LABELS, LABELS), {}, "reference_labels: expected None"),
        ((EMB, EMB, LABELS), {}, "reference_labels: expected one label per reference"),
        ((EMB, PROXIES, LABELS, LABELS), {}, "reference_labels: expected None"),
        ((EMB, PROXIES[..., :4], LABELS), {}, "references: expected vectors of 5 components, got 4"),
        ((EMB, PROXIES, LABELS + 1), {}, r"labels: expected values in \[0, 3\) for 3 classes, got 3"),
        ((EMB, PROXIES, -LABELS), {}, r"labels: expected values in \[0, 3\) for 3 classes, got -2"),
        ((EMB, None, LABELS), {"anchor": "row"}, 'anchor: expected "sample" or "proxy"'),
        ((EMB, None, LABELS), {"reduction": "avg"}, "reduction: expected"),
        ((EMB, None, LABELS), {"normalize": "l2"}, "normalize: expected"),
        ((EMB, None, LABELS), {"distance": "l1"}, "distance: expected"),
    ],
)
def test_bad_arguments(arguments: tuple[Any, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.contrastive(*arguments, **options)


def test_samples_need_a_class_among_the_proxies() -> None:
    """Where proxies are the anchors as well; labelled references take any labels."""
    with pytest.raises(ValueError, match=r"labels: expected values in \[0, 3\) for 3 classes, got 3"):
        reference.proxy_anchor(EMB + 1, PROXIES + 1, LABELS + 1)
