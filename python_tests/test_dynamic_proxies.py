"""Proxy-NCA with dynamic assignment: every sample is stood for by the nearest of all proxies."""

from __future__ import annotations

import pytest
import torch
from helpers import vectors
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast import reference
from ccp_fast.losses import ProxyNCALoss

M, C, K, D = 23, 5, 3, 7
LABELS = torch.randint(-(2**40), 2**40, (6,), generator=torch.Generator().manual_seed(0))[torch.arange(M) % 6]


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return vectors(M, D, dtype=dtype).requires_grad_(), vectors(C, K, D, seed=1, dtype=dtype).requires_grad_()


def by_definition(x: Tensor, proxies: Tensor, variant: str) -> Tensor:
    """Sample by sample, on unit vectors, T = 1."""
    x, flat = (torch.nn.functional.normalize(v, dim=-1) for v in (x, proxies.flatten(0, 1)))
    assigned = torch.stack([flat[int((a - flat).detach().norm(dim=1).argmin())] for a in x])
    losses = []
    for i in range(M):
        terms = torch.exp(-(x[i] - assigned).square().sum(1))
        same = LABELS[i] == LABELS
        losses.append(
            -(terms[same].sum() / (terms.sum() if variant == "plus_plus" else terms[~same].sum())).log()
        )
    return torch.stack(losses).mean()


@pytest.mark.parametrize("variant", ["plus_plus", "original"])
@pytest.mark.parametrize("module", [F, reference])
def test_equals_its_definition(module, variant: str) -> None:
    x, proxies = inputs()
    options = {"temperature": 1.0, "variant": variant, "assignment": "dynamic"}
    value, expected = module.proxy_nca(x, proxies, LABELS, **options), by_definition(x, proxies, variant)
    torch.testing.assert_close(value, expected)
    for a, b in zip(
        torch.autograd.grad(value, (x, proxies)), torch.autograd.grad(expected, (x, proxies)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_the_loss_module() -> None:
    loss = ProxyNCALoss(C, D, K, assignment="dynamic")
    x, _ = inputs(torch.float32)
    value = loss(x, LABELS)
    assert torch.equal(value, F.proxy_nca(x, loss.proxies, LABELS, assignment="dynamic"))
    value.backward()
    found = F.nearest_reference(x, loss.proxies, normalize="unit").indices
    idle = torch.ones(C * K, dtype=torch.bool).index_fill(0, found, False)
    assert idle.any()
    moved = loss.proxies.grad.flatten(0, 1).abs().sum(1) > 0
    assert torch.equal(moved, ~idle)


def test_whose_a_proxy_is_does_not_matter() -> None:
    x, proxies = inputs()
    order = torch.randperm(C * K, generator=torch.Generator().manual_seed(2))
    shuffled = proxies.flatten(0, 1)[order].view(1, C * K, D)
    values = [F.proxy_nca(x, p, LABELS, assignment="dynamic") for p in (proxies, shuffled)]
    torch.testing.assert_close(*values)


def test_labelled_references_and_the_batch_are_nobody_to_assign() -> None:
    x, proxies = inputs()
    others, other_labels = proxies.flatten(0, 1), LABELS[: C * K]
    for arguments in ((x, None, LABELS), (x, others, LABELS, other_labels)):
        assert torch.equal(F.proxy_nca(*arguments, assignment="dynamic"), F.proxy_nca(*arguments))


def test_a_samples_own_proxy_is_one_of_its_positives() -> None:
    """The only one of a sample alone in its class, which without it would add nothing."""
    x, proxies = inputs()
    labels = torch.arange(M)
    values = F.proxy_nca(x, proxies, labels, assignment="dynamic", temperature=1.0, reduction="none")
    flat = torch.nn.functional.normalize(proxies, dim=-1).flatten(0, 1)
    unit = torch.nn.functional.normalize(x, dim=1)
    own = flat[F.nearest_reference(x, proxies, normalize="unit").indices]
    terms = -(unit[:, None] - own).square().sum(-1)
    torch.testing.assert_close(values, terms.logsumexp(1) - terms.diagonal())


def test_second_derivatives() -> None:
    x, proxies = (v.detach()[:4].requires_grad_() for v in inputs())

    def loss(x: Tensor, proxies: Tensor) -> Tensor:
        return F.proxy_nca(x, proxies, LABELS[:4] % 2, assignment="dynamic", temperature=1.0)

    assert torch.autograd.gradcheck(loss, (x, proxies))
    assert torch.autograd.gradgradcheck(loss, (x, proxies))


def train(x: Tensor, proxies: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """The loss after 200 steps over that at the start, and the proxy that each sample then has."""
    optimizer = torch.optim.SGD([x, proxies], lr=0.5)
    values = []
    for _ in range(200):
        optimizer.zero_grad()
        value = F.proxy_nca(x, proxies, labels, assignment="dynamic", temperature=1.0)
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values[-1] / values[0], F.nearest_reference(x, proxies, normalize="unit").indices


def test_training_pulls_classes_apart() -> None:
    """Two classes that overlap, and a proxy on each side."""
    angle = torch.tensor([0.2, -0.2]).repeat_interleave(20)
    angle = angle + 0.2 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    x = torch.stack([angle.cos(), angle.sin()], 1).requires_grad_()
    proxies = torch.tensor([[[0.8, 0.6], [0.8, -0.6]]], requires_grad=True)
    labels = torch.arange(2).repeat_interleave(20)
    before = F.nearest_reference(x, proxies, normalize="unit").indices
    assert (before != labels).any()
    left, after = train(x, proxies, labels)
    assert left < 0.5
    assert torch.equal(after, labels)


def test_one_proxy_for_all_is_a_dead_end() -> None:
    """As the docstring says: it is a positive and a negative of every sample alike."""
    x = torch.tensor([[1.0, 0.2], [1.0, -0.2]], requires_grad=True)
    proxies = torch.tensor([[[1.0, 0.0]], [[-1.0, 0.1]]], requires_grad=True)
    value = F.proxy_nca(x, proxies, torch.tensor([0, 1]), assignment="dynamic")
    value.backward()
    assert x.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("proxies", "options", "message"),
    [
        (
            torch.zeros(C, K, D),
            {"assignment": "nearest"},
            'assignment: expected "static" or "dynamic", got \'nearest\'',
        ),
        (torch.zeros(0, K, D), {}, r"references: expected a proxy to assign, got shape \[0, 3, 7\]"),
        (torch.zeros(C, K, D - 1), {}, "references: expected last dimension 7"),
    ],
)
def test_errors(proxies: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.proxy_nca(torch.zeros(M, D), proxies, LABELS, **{"assignment": "dynamic", **options})
