"""The paper's form of the lifted structure loss: fused over negatives, one positive at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast import reference
from ccp_fast.losses import LiftedStructureLoss

REDUCTIONS = ["mean", "active_mean", "anchor_mean", "sum", "none"]


def batch(samples: int, classes: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 0.7 * torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    return embeddings.requires_grad_(), torch.randint(0, classes, (samples,), generator=generator)


def value_and_gradient(
    module: object, embeddings: Tensor, labels: Tensor, **options: object
) -> tuple[Tensor, Tensor]:
    value = module.lifted_structure(embeddings, None, labels, **options)  # type: ignore[attr-defined]
    weight = torch.linspace(0.5, 2.0, value.numel(), dtype=value.dtype).reshape(value.shape)
    return value.detach(), torch.autograd.grad((value * weight).sum(), embeddings)[0]


@given(
    st.tuples(st.integers(0, 70), st.integers(1, 30), st.integers(1, 40)),
    st.sampled_from([None, "unit", "ball"]),
    st.sampled_from(REDUCTIONS),
    st.integers(0, 10**6),
)
@examples(max_examples=60, deadline=None)
def test_equals_the_reference(
    shape: tuple[int, int, int], normalize: str | None, reduction: str, seed: int
) -> None:
    embeddings, labels = batch(*shape, seed)
    options = {"margin": 0.8, "normalize": normalize, "reduction": reduction}
    ours = value_and_gradient(F, embeddings, labels, **options)
    truth = value_and_gradient(reference, embeddings, labels, **options)
    for x, exact in zip(ours, truth, strict=True):
        torch.testing.assert_close(x, exact, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_within_eagers_own(dtype: torch.dtype) -> None:
    embeddings, labels = batch(60, 17, 33)
    low = embeddings.detach().to(dtype).requires_grad_()
    truth = value_and_gradient(reference, low.detach().double().requires_grad_(), labels)
    eager, ours = (value_and_gradient(module, low, labels) for module in (reference, F))
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == dtype
    for x, plain, exact in zip(ours, eager, truth, strict=True):
        allowed = 2 * (plain.double() - exact).abs().max() + 1e-6 * exact.abs().max()
        assert (x.double() - exact).abs().max() <= allowed


def test_derivatives() -> None:
    embeddings, labels = batch(11, 4, 5)

    def loss(x: Tensor) -> Tensor:
        return F.lifted_structure(x, None, labels)

    assert torch.autograd.gradcheck(loss, embeddings)
    assert torch.autograd.gradgradcheck(loss, embeddings)


@pytest.mark.parametrize("test", ["test_schema", "test_autograd_registration", "test_faketensor"])
def test_opcheck(test: str) -> None:
    vectors, labels = batch(11, 4, 5)
    lse = torch.randn(11, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.ccp_fast.lifted_pairs.default, (vectors, labels, lse), test_utils=test)


def test_compiles_into_one_graph() -> None:
    embeddings, labels = batch(40, 9, 16)
    compiled = torch.compile(F.lifted_structure, fullgraph=True, backend="aot_eager")
    value = compiled(embeddings, None, labels)
    assert torch.equal(value, F.lifted_structure(embeddings, None, labels))
    value.backward()
    assert torch.isfinite(embeddings.grad).all()


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1.0, 1e4])
@pytest.mark.parametrize("variant", ["pair", "anchor"])
def test_finite_at_every_extreme(variant: str, size: float) -> None:
    """Duplicates, zero vectors, one class alone, each sample a class of its own."""
    embeddings = size * torch.randn(12, 6)
    embeddings[1] = embeddings[0]
    embeddings[2] = 0
    for labels in (torch.arange(12) // 3, torch.zeros(12, dtype=torch.int64), torch.arange(12)):
        leaf = embeddings.clone().requires_grad_()
        value = F.lifted_structure(leaf, None, labels, variant=variant)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(leaf.grad).all()
        if variant == "pair" and len(labels.unique()) in (1, 12):  # no negatives, or no positives
            assert value == 0
            assert not leaf.grad.any()


def test_permuting_the_batch_changes_nothing() -> None:
    embeddings, labels = batch(50, 13, 24)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(3))
    value, gradient = value_and_gradient(F, embeddings, labels, reduction="sum")
    other, moved = value_and_gradient(
        F, embeddings.detach()[order].requires_grad_(), labels[order], reduction="sum"
    )
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(moved, gradient[order])


def test_pairs_need_the_batch_itself() -> None:
    embeddings, labels = batch(9, 3, 4)
    with pytest.raises(ValueError, match=r'references: expected None, the batch itself, with variant="pair"'):
        F.lifted_structure(embeddings, torch.zeros(3, 2, 4, dtype=torch.float64), labels)
    with pytest.raises(ValueError, match='variant: expected "pair" or "anchor", got \'both\''):
        F.lifted_structure(embeddings, None, labels, variant="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='variant: expected "anchor" for a loss with proxies, got "pair"'):
        LiftedStructureLoss(num_classes=3, dim=4)
    with_proxies = LiftedStructureLoss(num_classes=3, dim=4, variant="anchor")
    assert torch.isfinite(with_proxies(embeddings, labels))
