"""Losses that take the proxies of a class as one: margin softmax and SoftTriple. Meaning and refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses as peers
from test_similarity_loss import LOSSES, functions, sample_inputs, value_and_gradients, weight_for
from torch import Tensor
from torch.nn.functional import cross_entropy

import ccp_fast.functional as F
from ccp_fast.ops.similarity_loss import MOST_MEMBERS

GROUPED = [loss for loss in LOSSES if loss.startswith(("margin_softmax", "soft_triple"))]


def directions(*angles: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Unit vectors in the plane."""
    theta = torch.tensor(angles, dtype=torch.float64)
    return torch.stack([theta.cos(), theta.sin()], 1).to(dtype)


@pytest.mark.parametrize("k", [1, 2, 5, 11, 31, 32])
@pytest.mark.parametrize("m", [3, 200])
@pytest.mark.parametrize("loss", GROUPED)
def test_groups_of_any_size(loss: str, m: int, k: int) -> None:
    """A tile holds as many whole groups as fit. With 200 samples it is they that are streamed, not the proxies."""
    fused, dense = functions(loss)
    options = {**LOSSES[loss], "reduction": "none"}
    case = sample_inputs("proxies", (m, 1 + 150 // k, k, 9))
    weight = weight_for(case, dense, **options)
    for ours, truth in zip(
        value_and_gradients(case, fused, weight, **options),
        value_and_gradients(case, dense, weight, **options),
        strict=True,
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", GROUPED)
def test_too_many_proxies_are_refused(loss: str) -> None:
    fused, _ = functions(loss)
    proxies, labels = torch.zeros(2, MOST_MEMBERS + 1, 4), torch.zeros(3, dtype=torch.int64)
    message = r"references: expected at most 32 proxies per class, got shape \[2, 33, 4\]"
    with pytest.raises(ValueError, match=message):
        fused(torch.zeros(3, 4), proxies, labels, **LOSSES[loss])
    operator = torch.ops.ccp_fast.similarity_loss.default
    arguments = (loss, [v for v in LOSSES[loss].values() if isinstance(v, float)], "unit", "mean")
    with pytest.raises(RuntimeError, match="references: expected at most 32 proxies per class, got 33"):
        operator(torch.zeros(3, 4), proxies, labels, None, *arguments, False, False, False)


@pytest.mark.parametrize("loss", GROUPED)
def test_references_of_classes_of_their_own_are_single_proxies(loss: str) -> None:
    """The sampled centres of a large classifier, say."""
    fused, _ = functions(loss)
    case = sample_inputs("proxies", (13, 7, 1, 5))
    assert case.references is not None
    labelled = fused(case.anchors, case.references[:, 0], case.labels, torch.arange(7), **LOSSES[loss])
    assert torch.equal(labelled, case.run(fused, **LOSSES[loss]))


def test_without_a_margin_it_is_cross_entropy_of_the_best_sub_centres() -> None:
    case = sample_inputs("proxies", (13, 7, 3, 5))
    assert case.references is not None
    cosines = torch.cosine_similarity(case.anchors[:, None, None], case.references, dim=3)
    for options in ({"kind": "none"}, {"kind": "cosface", "margin": 0.0}, {"kind": "arcface", "margin": 0.0}):
        torch.testing.assert_close(
            case.run(F.margin_softmax, scale=16.0, **options),
            cross_entropy(16 * cosines.amax(2), case.labels),
        )


@pytest.mark.parametrize(("kind", "published"), [("cosface", 0.35), ("arcface", 0.5)])
def test_a_margin_that_is_not_given_is_the_published_one(kind: str, published: float) -> None:
    case = sample_inputs("proxies", (13, 7, 3, 5))
    values = [case.run(F.margin_softmax, kind=kind, **given) for given in ({}, {"margin": published})]
    assert torch.equal(*values)


def test_with_one_centre_soft_triple_is_cosface() -> None:
    case = sample_inputs("proxies", (13, 7, 1, 5)).to(torch.float32)
    weight = torch.ones(())
    soft = value_and_gradients(case, F.soft_triple, weight, scale=20.0, margin=0.2)
    hard = value_and_gradients(case, F.margin_softmax, weight, scale=20.0, margin=0.2, kind="cosface")
    assert torch.equal(soft[0], hard[0])
    for a, b in zip(soft, hard, strict=True):
        torch.testing.assert_close(a, b)


def test_gamma_divides() -> None:
    """Towards 0 the class's similarity is that of the best centre, towards infinity the mean."""
    case = sample_inputs("proxies", (13, 7, 3, 5))
    assert case.references is not None
    sharp, flat = (case.run(F.soft_triple, gamma=gamma, margin=0.0, tau=0.0) for gamma in (1e-5, 1e5))
    torch.testing.assert_close(sharp, case.run(F.margin_softmax, scale=20.0), rtol=1e-3, atol=0)
    means = torch.nn.functional.normalize(case.references, dim=2).mean(1)
    logits = 20 * torch.nn.functional.normalize(case.anchors, dim=1) @ means.T
    torch.testing.assert_close(flat, cross_entropy(logits, case.labels), rtol=1e-3, atol=0)


def test_tau_weighs_the_spread_of_the_centres_once_in_each_value() -> None:
    case = sample_inputs("proxies", (13, 7, 3, 5))
    assert case.references is not None
    w = torch.nn.functional.normalize(case.references, dim=2)
    spread = torch.stack([(w[:, a] - w[:, b]).norm(dim=1) for a, b in ((0, 1), (0, 2), (1, 2))]).mean() / 2
    for reduction in ("none", "sum", "mean"):
        plain, tied = (case.run(F.soft_triple, tau=tau, reduction=reduction) for tau in (0.0, 0.7))
        torch.testing.assert_close(tied - plain, (0.7 * spread).expand_as(plain))
    labelled = sample_inputs("labelled", (13, 7, 3, 5))
    assert torch.equal(labelled.run(F.soft_triple, tau=0.7), labelled.run(F.soft_triple, tau=0.0))


def test_the_first_of_equal_sub_centres_gets_the_gradient() -> None:
    anchors = torch.randn(5, 8)
    proxies = torch.randn(3, 1, 8).repeat(1, 4, 1).requires_grad_()
    F.margin_softmax(anchors, proxies, torch.arange(5) % 3, kind="arcface").backward()
    assert proxies.grad is not None
    assert proxies.grad[:, 0].any(1).all()
    assert not proxies.grad[:, 1:].any()


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, math.pi / 2])
def test_arcface_falls_with_the_angle_all_the_way(margin: float) -> None:
    """Where θ + margin passes π, cos would turn back."""
    angles = torch.linspace(0, math.pi, 400, dtype=torch.float64)
    own, other = directions(0.0), directions(math.pi / 2)
    anchors = directions(*angles.tolist())
    values = F.margin_softmax(
        anchors,
        torch.stack([own, other]),
        torch.zeros(400, dtype=torch.int64),
        scale=1.0,
        margin=margin,
        kind="arcface",
        reduction="none",
    )
    # log(1 + e^{other − target}) tells the target.
    target = anchors @ other[0] - values.expm1().log()
    assert (target.diff() < 0).all()
    inside = angles + margin < math.pi - 1e-9
    torch.testing.assert_close(target[inside], (angles[inside] + margin).cos())
    beyond = angles + margin > math.pi + 1e-9
    torch.testing.assert_close(target[beyond], angles[beyond].cos() - margin * math.sin(margin))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_arcface_is_finite_where_cosines_are_one(cosine: float, dtype: torch.dtype) -> None:
    """pytorch-metric-learning's acos has no derivative there."""
    proxies = torch.eye(4, 6, dtype=dtype)
    anchors = (cosine * proxies).requires_grad_()
    labels = torch.arange(4)
    value = F.margin_softmax(anchors, proxies[:, None], labels, margin=0.5, kind="arcface")
    (gradient,) = torch.autograd.grad(value, anchors)
    assert value.isfinite()
    assert gradient.isfinite().all()
    if dtype != torch.float32:
        return
    theirs = peers.ArcFaceLoss(4, 6, margin=math.degrees(0.5), scale=64)
    theirs.W.data = proxies.T.clone()
    peer_value = theirs(anchors, labels)
    assert value.item() == pytest.approx(peer_value.item(), rel=1e-5, abs=1e-6)
    assert torch.autograd.grad(peer_value, anchors)[0].isnan().any()


@pytest.mark.parametrize("gap", [1e-7, 1e-5, 1e-3, 1e-2])
def test_arcface_gradients_are_bounded_near_one(gap: float) -> None:
    """d cos(θ + m)/dθ is at most 1, whatever 1/sin θ becomes."""
    anchors = directions(gap, dtype=torch.float32).requires_grad_()
    proxies = torch.stack([directions(0.0), directions(0.7)]).float()
    value = F.margin_softmax(anchors, proxies, torch.tensor([0]), scale=8.0, margin=0.5, kind="arcface")
    (gradient,) = torch.autograd.grad(value, anchors)
    assert gradient.norm() < 2 * 8
    exact = anchors.detach().double().requires_grad_()
    truth = F.margin_softmax(
        exact, proxies.double(), torch.tensor([0]), scale=8.0, margin=0.5, kind="arcface"
    )
    if gap >= 1e-2:
        (expected,) = torch.autograd.grad(truth, exact)
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=0.002 * 8)


@pytest.mark.parametrize("loss", GROUPED)
def test_one_class_costs_nothing(loss: str) -> None:
    fused, _ = functions(loss)
    anchors, proxies = torch.randn(5, 8), torch.randn(1, 3, 8)
    alone = {"tau": 0.0} if loss == "soft_triple" else {}
    assert fused(anchors, proxies, torch.zeros(5, dtype=torch.int64), **LOSSES[loss], **alone) == 0


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (
            F.margin_softmax,
            {"kind": "sphereface"},
            'kind: expected "none", "cosface" or "arcface", got \'sphereface\'',
        ),
        (
            F.margin_softmax,
            {"margin": 0.35},
            'margin: expected None with kind="none", which has no margin, got 0.35',
        ),
        (F.margin_softmax, {"scale": 0.0}, "scale: expected a number above 0, got 0.0"),
        (
            F.margin_softmax,
            {"kind": "arcface", "margin": 28.6},
            "margin: expected radians from 0 to π/2, got 28.6",
        ),
        (F.soft_triple, {"gamma": 0.0}, "gamma: expected a number above 0, got 0.0"),
        (F.soft_triple, {"scale": -1.0}, "scale: expected a number above 0, got -1.0"),
    ],
)
def test_refusals_name_the_argument(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(2, 3), torch.zeros(2, 1, 3), torch.zeros(2, dtype=torch.int64), **options)
