"""Where peers fail (named at each test): extremes stay finite and right, bad input is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_similarity_loss import LOSSES, functions
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast import reference


def loss_and_gradients(
    function: Any, anchors: Tensor, references: Tensor, *labels: Tensor, **options: Any
) -> list[Tensor]:
    a, r = anchors.detach().requires_grad_(), references.detach().requires_grad_()
    value = function(a, r, *labels, **options)
    return [value.detach(), *torch.autograd.grad(value.sum(), (a, r))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_antipodal_sample_keeps_its_loss_and_gradient(dtype: torch.dtype) -> None:
    """pytorch-metric-learning's ProxyNCALoss drops rows whose softmax underflows: loss 0 where it is 128."""
    samples = torch.eye(4, 8, dtype=dtype)
    proxies = -samples[:, None, :].clone()
    proxies[1:] = torch.eye(8, dtype=dtype)[5:8, None, :]  # the others stand at right angles
    value, gradient, _ = loss_and_gradients(
        F.proxy_nca, samples[:1], proxies, torch.zeros(1, dtype=torch.int64), temperature=1 / 32
    )
    truth = reference.proxy_nca(
        samples[:1].double(), proxies.double(), torch.zeros(1, dtype=torch.int64), temperature=1 / 32
    )
    assert value == pytest.approx(float(truth), rel=1e-5)
    assert value > 60
    tilted = samples[:1] + 0.3 * torch.eye(8, dtype=dtype)[4:5]
    gradient = loss_and_gradients(
        F.proxy_nca, tilted, proxies, torch.zeros(1, dtype=torch.int64), temperature=1 / 32
    )[1]
    assert gradient.abs().max() > 1


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1.0, 1e4])
def test_finite_at_every_size(loss: str, dtype: torch.dtype, size: float) -> None:
    fused, _ = functions(loss)
    # Of two gradients that PyTorch adds up in half, one may leave its range; test_centre_spread.py has the other one.
    alone = {"tau": 0.0} if loss == "soft_triple" else {}
    anchors = (size * torch.randn(9, 6)).to(dtype)
    references = (size * torch.randn(4, 2, 6)).to(dtype)
    anchors[0], references[0, 0] = 0, 0
    anchors[1] = anchors[2] = references[1, 0]
    anchors[3] = -references[2, 1]
    labels = torch.tensor([0, 1, 2, 2, 0, 1, 2, 3, 3])
    for options in ({}, {"anchor": "proxy", "reduction": "none"}):
        options = {**LOSSES[loss], **options, **alone}
        results = loss_and_gradients(fused, anchors, references, labels, **options)
        truth = loss_and_gradients(fused, anchors.double(), references.double(), labels, **options)
        for x, t in zip(results, truth, strict=True):
            assert torch.isfinite(t).all()
            # A unit vector's gradient grows as 1/‖v‖: past half's largest number only infinity is left.
            representable = t.abs() < torch.finfo(x.dtype).max
            if loss.startswith("margin_softmax"):  # of two centres as near, rounding chooses who gets it
                representable &= representable.all()
            assert torch.isfinite(x[representable]).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [1e-38, 1e19, 1e38])
def test_normalising_survives_floats_range(loss: str, size: float) -> None:
    """The squared norm leaves float32's range; the unit vector does not."""
    fused, dense = functions(loss)
    directions = torch.nn.functional.normalize(torch.randn(9, 6, dtype=torch.float64), dim=1)
    references = torch.nn.functional.normalize(torch.randn(4, 2, 6, dtype=torch.float64), dim=2)
    labels = torch.randint(0, 4, (9,))
    options = {**LOSSES[loss], "normalize": "unit" if size > 1 else "ball"}
    value = fused((size * directions).float(), (size * references).float(), labels, **options)
    if size < 1:
        directions, references = directions * 0, references * 0
    assert value == pytest.approx(float(dense(directions, references, labels, **options)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("scale", [64.0, 400.0, 1000.0, 1e6])
def test_sharp_exponentials_do_not_overflow(scale: float) -> None:
    """Published exponentials overflow from alpha·(delta + s) > 88 on; gradients already do at masked entries."""
    samples = torch.nn.functional.normalize(torch.randn(12, 8), dim=1)
    proxies = torch.nn.functional.normalize(torch.randn(5, 2, 8), dim=2)
    labels = torch.randint(0, 5, (12,))
    samples[0] = proxies[labels[0], 0]
    samples[1] = -proxies[labels[1], 1]
    for name, options in {
        "proxy_anchor": {"alpha": scale},
        "multi_similarity": {"alpha": scale, "beta": scale},
        "proxy_nca": {"temperature": 1 / scale},
        "margin_softmax": {"scale": scale, "kind": "cosface"},
        "soft_triple": {"scale": scale, "gamma": 1 / scale},
    }.items():
        ours = loss_and_gradients(getattr(F, name), samples, proxies, labels, **options)
        truth = loss_and_gradients(
            getattr(reference, name), samples.double(), proxies.double(), labels, **options
        )
        assert float(ours[0]) == pytest.approx(float(truth[0]), rel=1e-4)
        for o, t in zip(ours[1:], truth[1:], strict=True):
            # Rounding a cosine by 1e-7 moves a logit by scale·1e-7, so a probability by that share of itself.
            assert (o - t).abs().max() <= (1e-5 + 1e-6 * scale) * t.abs().max() + 1e-6


@pytest.mark.parametrize("loss", LOSSES)
def test_anchor_without_positives_and_batch_of_one_class(loss: str) -> None:
    fused, dense = functions(loss)
    anchors = torch.randn(6, 5, dtype=torch.float64)
    references = torch.randn(7, 5, dtype=torch.float64)
    for labels, reference_labels in (
        (torch.arange(6), torch.full((7,), 99)),
        (torch.zeros(6, dtype=torch.int64), torch.zeros(7, dtype=torch.int64)),
        (torch.tensor([0, 0, 0, 1, 2, 3]), torch.tensor([0, 1, 1, 5, 5, 5, 5])),
    ):
        for reduction in ("mean", "active_mean", "none"):
            options = {**LOSSES[loss], "reduction": reduction}
            ours = loss_and_gradients(fused, anchors, references, labels, reference_labels, **options)
            truth = loss_and_gradients(dense, anchors, references, labels, reference_labels, **options)
            for o, t in zip(ours, truth, strict=True):
                torch.testing.assert_close(o, t, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", ["proxy_nca", "margin_softmax", "margin_softmax_arcface", "soft_triple"])
def test_gradients_of_a_small_cross_entropy_keep_their_digits(loss: str) -> None:
    """1 − p is rounding alone where p is nearly 1, as it is for most samples at the end of training."""
    fused, dense = functions(loss)
    proxies = torch.eye(4, 8)[:, None]
    anchors = torch.eye(4, 8) + 0.3 * torch.eye(8)[4:]
    options = {**LOSSES[loss], "temperature": 0.1} if loss == "proxy_nca" else LOSSES[loss]
    ours = loss_and_gradients(fused, anchors, proxies, torch.arange(4), **options)
    truth = loss_and_gradients(dense, anchors.double(), proxies.double(), torch.arange(4), **options)
    assert truth[0] < 1e-4
    for o, t in zip(ours, truth, strict=True):
        assert (o - t).abs().max() <= 2e-5 * t.abs().max()


def test_distances_are_exact_near_zero() -> None:
    """‖a‖² + ‖r‖² − 2a·r loses everything below 3e-4; pairs this close are computed from their difference."""
    anchors = torch.nn.functional.normalize(torch.randn(40, 64), dim=1)
    for gap in (1e-2, 1e-4, 1e-6):
        references = anchors + gap * torch.nn.functional.normalize(torch.randn(40, 64), dim=1)
        labels = torch.arange(40)
        truth = (anchors.double() - references.double()).norm(dim=1)
        ours = F.contrastive(
            anchors, references, labels, labels, neg_margin=0.0, normalize=None, reduction="none"
        )
        torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=0)


def test_identical_vectors_have_no_gradient() -> None:
    anchors = torch.randn(5, 8)
    labels = torch.arange(5)
    for loss in (F.contrastive, F.triplet):
        options = {"neg_margin": 0.0} if loss is F.contrastive else {"margin": 1e-9}
        value, gradient, other = loss_and_gradients(loss, anchors, anchors.clone(), labels, labels, **options)
        assert value == 0
        assert not gradient.any()
        assert not other.any()


@pytest.mark.parametrize("loss", LOSSES)
def test_nan_is_not_swallowed(loss: str) -> None:
    fused, _ = functions(loss)
    anchors, proxies = torch.randn(9, 6), torch.randn(4, 2, 6)
    labels = torch.randint(0, 4, (9,))
    poisoned = anchors.clone()
    poisoned[4, 2] = torch.nan
    assert torch.isnan(fused(poisoned, proxies, labels, **LOSSES[loss]))
    proxies = proxies.clone()
    proxies[1, 1, 3] = torch.nan
    assert torch.isnan(fused(anchors, proxies, labels, **LOSSES[loss], reduction="sum"))


def test_refusals_name_the_argument() -> None:
    a, p, y = torch.randn(6, 5), torch.randn(3, 2, 5), torch.zeros(6, dtype=torch.int64)
    refused: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
        (
            (a.int(), p, y),
            {},
            r"anchors: expected floating point of shape \[M, D\], got int32 of shape \[6, 5\]",
        ),
        ((a[0], p, y), {}, r"anchors: .* got float32 of shape \[5\]"),
        ((a.tolist(), p, y), {}, r"anchors: expected floating point of shape \[M, D\], got list"),
        (
            (a, p[..., :4], y),
            {},
            r"references: expected last dimension 5, the anchors', got shape \[3, 2, 4\]",
        ),
        ((a, p.to("meta"), y), {}, "references: expected on cpu, the anchors' device, got meta"),
        ((a, p, y.float()), {}, r"labels: expected int64 of shape \[6\], got float32 of shape \[6\]"),
        ((a, p, y[:, None]), {}, r"labels: expected int64 of shape \[6\], got int64 of shape \[6, 1\]"),
        ((a, p, y[:5]), {}, r"labels: expected int64 of shape \[6\], got int64 of shape \[5\]"),
        (
            (a, p, y, y),
            {},
            r"reference_labels: expected None, since references of shape \[C, K, D\] imply them",
        ),
        (
            (a, a, y),
            {},
            r"reference_labels: expected int64 of shape \[6\] with references of shape \[N, D\], got None",
        ),
        ((a, None, y, y), {}, "reference_labels: expected None where references is None"),
        ((a, p, y), {"normalize": "l2"}, 'normalize: expected "ball", "unit" or None, got \'l2\''),
        ((a, p, y), {"reduction": "avg"}, "reduction: expected .* got 'avg'"),
        ((a, p, y), {"anchor": "proxies"}, 'anchor: expected "sample" or "proxy", got \'proxies\''),
        ((a, p, y), {"distance": "cos"}, 'distance: expected "l2" or "cosine", got \'cos\''),
    ]
    for arguments, options, message in refused:
        with pytest.raises(ValueError, match=message):
            F.contrastive(*arguments, **options)
    with pytest.raises(ValueError, match="temperature: expected a number above 0, got 0"):
        F.proxy_nca(a, p, y, temperature=0.0)
    for bad in (-1, 3):
        y[2] = bad
        for anchor in ("sample", "proxy"):
            with pytest.raises(
                RuntimeError, match=rf"labels: expected values in \[0, 3\).* got {bad} at index 2"
            ):
                F.contrastive(a, p, y, anchor=anchor)
