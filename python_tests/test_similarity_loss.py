"""The fused losses against their dense references, and as citizens of PyTorch."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast import reference

LOSSES: dict[str, dict[str, Any]] = {
    "contrastive_l2": {"pos_margin": 0.1, "neg_margin": 0.9, "distance": "l2"},
    "contrastive_cosine": {"pos_margin": 0.05, "neg_margin": 0.2, "distance": "cosine"},
    "triplet": {"margin": 0.2},
    "multi_similarity": {"alpha": 2.0, "beta": 50.0, "base": 0.5},
    "proxy_nca": {"temperature": 1 / 9},
    "proxy_nca_original": {"temperature": 1 / 9, "variant": "original"},
    "proxy_anchor": {"alpha": 32.0, "margin": 0.1},
    "lifted_anchor": {"margin": 1.0, "variant": "anchor"},
    "margin_softmax": {"scale": 24.0, "margin": 0.35, "kind": "cosface"},
    "margin_softmax_arcface": {"scale": 24.0, "margin": 0.5, "kind": "arcface"},
    "soft_triple": {"scale": 20.0, "gamma": 0.1, "margin": 0.05},
}
# No number here is a multiple of a vector, a tile or a register block.
SHAPES = [(1, 1, 1, 1), (13, 7, 3, 5), (70, 29, 3, 33), (67, 41, 2, 130), (3, 77, 1, 257), (131, 5, 2, 17)]
KINDS = ["proxies", "labelled", "batch", "memory"]
REDUCTIONS = ["mean", "active_mean", "anchor_mean", "sum", "none"]


def functions(loss: str) -> tuple[Any, Any]:
    """The fused function and the dense one."""
    name = "lifted_structure" if loss == "lifted_anchor" else next(n for n in F.__all__ if loss.startswith(n))
    return getattr(F, name), getattr(reference, name)


@dataclass
class Case:
    """Inputs of one call; `references` is None within the batch."""

    anchors: Tensor
    references: Tensor | None
    labels: Tensor
    reference_labels: Tensor | None
    exclude_self: bool = False

    def to(self, dtype: torch.dtype) -> Case:
        def convert(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.detach().to(dtype).requires_grad_()

        return replace(self, anchors=convert(self.anchors), references=convert(self.references))

    @property
    def leaves(self) -> list[Tensor]:
        return [self.anchors] if self.references is None else [self.anchors, self.references]

    def run(self, function: Any, **options: Any) -> Tensor:
        return function(
            self.anchors,
            self.references,
            self.labels,
            self.reference_labels,
            exclude_self=self.exclude_self,
            **options,
        )


def sample_inputs(kind: str, shape: tuple[int, int, int, int], seed: int = 0, scale: float = 0.7) -> Case:
    """The same inputs serve every test.

    kind: "proxies" [C, K, D], "labelled" [C*K, D], "batch", or "memory": [M + C*K, D] with the anchors first.
    """
    m, c, k, d = shape
    g = torch.Generator().manual_seed(seed)
    anchors = scale * torch.randn(m, d, generator=g, dtype=torch.float64)
    labels = torch.randint(0, c, (m,), generator=g)
    if kind == "batch":
        return Case(anchors, None, labels, None).to(torch.float64)
    references = scale * torch.randn(c, k, d, generator=g, dtype=torch.float64)
    if kind == "proxies":
        return Case(anchors, references, labels, None).to(torch.float64)
    flat, reference_labels = references.flatten(0, 1), torch.randint(0, c, (c * k,), generator=g)
    if kind == "memory":
        flat, reference_labels = torch.cat([anchors, flat]), torch.cat([labels, reference_labels])
    return Case(anchors, flat, labels, reference_labels, kind == "memory").to(torch.float64)


def value_and_gradients(case: Case, function: Any, weight: Tensor, **options: Any) -> list[Tensor]:
    value = case.run(function, **options)
    gradients = torch.autograd.grad((value * weight.to(value.dtype)).sum(), case.leaves)
    return [value.detach(), *gradients]


def weight_for(case: Case, dense: Any, **options: Any) -> Tensor:
    shape = case.run(dense, **options).shape
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("anchor", ["sample", "proxy"])
def test_equals_reference_in_double(loss: str, kind: str, anchor: str) -> None:
    fused, dense = functions(loss)
    for shape, normalize, reduction in itertools.product(SHAPES, ["unit", "ball", None], REDUCTIONS):
        options = {**LOSSES[loss], "normalize": normalize, "reduction": reduction, "anchor": anchor}
        case = sample_inputs(kind, shape)
        weight = weight_for(case, dense, **options)
        ours = value_and_gradients(case, fused, weight, **options)
        truth = value_and_gradients(case, dense, weight, **options)
        for o, t in zip(ours, truth, strict=True):
            # One coordinate, normalised, has the gradient 0 in truth; what is left of it is rounding of 32/‖v‖.
            torch.testing.assert_close(
                o, t, rtol=1e-9, atol=1e-11 if shape[3] > 1 else 1e-9, msg=str((shape, options))
            )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_error_is_within_eagers_own(loss: str, dtype: torch.dtype) -> None:
    """|ours − truth| ≤ 2·|eager − truth| + a few roundings, both given the same rounded inputs."""
    fused, dense = functions(loss)
    for kind, anchor in [
        ("proxies", "sample"),
        ("proxies", "proxy"),
        ("labelled", "sample"),
        ("batch", "sample"),
    ]:
        options = {**LOSSES[loss], "anchor": anchor}
        low = sample_inputs(kind, (70, 29, 3, 33)).to(dtype)
        exact = low.to(torch.float64)
        weight = torch.ones((), dtype=torch.float64)
        ours = value_and_gradients(low, fused, weight, **options)
        eager = value_and_gradients(low, dense, weight, **options)
        truth = value_and_gradients(exact, dense, weight, **options)
        for o, e, t in zip(ours, eager, truth, strict=True):
            scale = t.abs().max()
            budget = 2 * (e.double() - t).abs().max() + 8 * torch.finfo(o.dtype).eps * scale + 1e-7
            assert (o.double() - t).abs().max() <= budget, (kind, anchor, o.shape)


@pytest.mark.parametrize("loss", LOSSES)
def test_mixed_dtypes_keep_each_sides_own(loss: str) -> None:
    fused, _ = functions(loss)
    case = sample_inputs("proxies", (13, 7, 3, 5))
    mixed = Case(
        case.anchors.detach().bfloat16().requires_grad_(),
        case.references.detach().float().requires_grad_(),  # type: ignore[union-attr]
        case.labels,
        None,
    )
    value = mixed.run(fused, **LOSSES[loss])
    value.backward()
    assert value.dtype == torch.float32
    assert mixed.anchors.grad.dtype == torch.bfloat16  # type: ignore[union-attr]
    assert mixed.references.grad.dtype == torch.float32  # type: ignore[union-attr]


@given(
    loss=st.sampled_from(sorted(LOSSES)),
    kind=st.sampled_from(KINDS),
    anchor=st.sampled_from(["sample", "proxy"]),
    reduction=st.sampled_from(REDUCTIONS),
    m=st.integers(0, 80),
    c=st.integers(1, 70),
    k=st.integers(1, 3),
    d=st.integers(
        2, 40
    ),  # on a line, normalised vectors coincide up to rounding, and a hinge turns that into 0 or 1
    seed=st.integers(0, 1000),
)
@settings(max_examples=150, deadline=None)
def test_any_shape(
    loss: str, kind: str, anchor: str, reduction: str, m: int, c: int, k: int, d: int, seed: int
) -> None:
    fused, dense = functions(loss)
    options = {**LOSSES[loss], "reduction": reduction, "anchor": anchor}
    case = sample_inputs(kind, (m, c, k, d), seed)
    weight = weight_for(case, dense, **options)
    for o, t in zip(
        value_and_gradients(case, fused, weight, **options),
        value_and_gradients(case, dense, weight, **options),
        strict=True,
    ):
        torch.testing.assert_close(o, t, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_the_batch_as_its_own_references_is_the_loss_within_it(loss: str, reduction: str) -> None:
    fused, _ = functions(loss)
    case = sample_inputs("batch", (70, 29, 3, 33))
    own = replace(case, references=case.anchors, reference_labels=case.labels, exclude_self=True)
    options = {**LOSSES[loss], "reduction": reduction}
    within, explicit = case.run(fused, **options), own.run(fused, **options)
    assert torch.equal(within, explicit)
    for a, b in zip(*(torch.autograd.grad(v.sum(), case.leaves) for v in (within, explicit)), strict=True):
        assert torch.equal(a, b)


def test_exclude_self_needs_a_reference_for_each_anchor() -> None:
    anchors, labels = torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64)
    for function in (F.triplet, reference.triplet):
        with pytest.raises(ValueError, match=r"^references: expected .*N >= 4.* exclude_self .*\[3, 2\]"):
            function(anchors, anchors[:3], labels, labels[:3], exclude_self=True)
        with pytest.raises(ValueError, match=r"^references: expected .* exclude_self .*\[9, 1, 2\]"):
            function(anchors, torch.zeros(9, 1, 2), labels, None, exclude_self=True)
    for function in (F.proxy_nca, reference.proxy_nca):
        with pytest.raises(ValueError, match=r"^references: expected .* exclude_self .*\[9, 1, 2\]"):
            function(anchors, torch.zeros(9, 1, 2), labels, None, exclude_self=True, assignment="dynamic")


@pytest.mark.parametrize("loss", LOSSES)
def test_order_of_references_changes_nothing(loss: str) -> None:
    """Columns are split and merged differently after a permutation: merge is associative and free of order."""
    fused, _ = functions(loss)
    case = sample_inputs("labelled", (70, 300, 3, 16))
    order = torch.randperm(900, generator=torch.Generator().manual_seed(2))
    shuffled = Case(
        case.anchors,
        case.references.detach()[order].requires_grad_(),  # type: ignore[index]
        case.labels,
        case.reference_labels[order],  # type: ignore[index]
    )
    weight = torch.ones((), dtype=torch.float64)
    value, rows, columns = value_and_gradients(case, fused, weight, **LOSSES[loss])
    value2, rows2, columns2 = value_and_gradients(shuffled, fused, weight, **LOSSES[loss])
    torch.testing.assert_close(value2, value, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows2, rows, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(columns2, columns[order], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_same_bits_for_any_number_of_threads(loss: str) -> None:
    fused, _ = functions(loss)
    case = sample_inputs("proxies", (70, 500, 3, 40)).to(torch.float32)
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(value_and_gradients(case, fused, torch.ones(()), **LOSSES[loss]))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_classes_stream_the_other_side(loss: str) -> None:
    """Two classes of 130: a table of positives would be large, so triplet streams the rows instead."""
    fused, dense = functions(loss)
    case = sample_inputs("batch", (260, 2, 1, 7))
    weight = torch.ones((), dtype=torch.float64)
    for o, t in zip(
        value_and_gradients(case, fused, weight, **LOSSES[loss]),
        value_and_gradients(case, dense, weight, **LOSSES[loss]),
        strict=True,
    ):
        torch.testing.assert_close(o, t, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(loss: str, kind: str) -> None:
    from ccp_fast.ops.similarity_loss import _backward, _forward

    case = sample_inputs(kind, (13, 7, 3, 5))
    parameters = [v for v in LOSSES[loss].values() if isinstance(v, float)]
    references = case.anchors if case.references is None else case.references
    labels = case.labels if case.references is None else case.reference_labels
    for reduction, proxy_rows in [("mean", False), ("none", True)]:
        exclude_self = kind in ("batch", "memory")
        tail = (loss, parameters, "ball", reduction, proxy_rows, exclude_self, False)
        inputs = (case.anchors, references, case.labels, labels)
        torch.library.opcheck(_forward, (*inputs, *tail))
        value, *saved = _forward(*inputs, *tail)
        torch.library.opcheck(
            _backward,
            (
                torch.ones_like(value),
                *(x if x is None else x.detach() for x in inputs),
                *saved,
                *tail,
                True,
                True,
            ),
        )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(loss: str, kind: str) -> None:
    fused, _ = functions(loss)
    case = sample_inputs(kind, (7, 5, 2, 3), seed=3)
    # Sums over hinges jump in their counts at a margin, so the hinges are checked as sums.
    reduction = "sum" if loss.startswith(("contrastive", "triplet")) else "mean"

    def run(*leaves: Tensor) -> Tensor:
        references = None if kind == "batch" else leaves[1]
        return replace(case, anchors=leaves[0], references=references).run(
            fused, **LOSSES[loss], reduction=reduction
        )

    assert torch.autograd.gradcheck(run, case.leaves)
    assert torch.autograd.gradgradcheck(run, case.leaves)


@pytest.mark.parametrize("loss", LOSSES)
def test_create_graph_equals_reference(loss: str) -> None:
    fused, dense = functions(loss)
    results = []
    for function in (fused, dense):
        case = sample_inputs("proxies", (13, 7, 3, 5))
        first = torch.autograd.grad(case.run(function, **LOSSES[loss]), case.leaves, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        results.append(torch.autograd.grad(penalty, case.leaves))
    for o, t in zip(*results, strict=True):
        torch.testing.assert_close(o, t, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", LOSSES)
def test_compiles_without_a_graph_break(loss: str) -> None:
    fused, _ = functions(loss)
    case = sample_inputs("proxies", (13, 7, 3, 5)).to(torch.float32)

    def step(anchors: Tensor, references: Tensor, labels: Tensor) -> Tensor:
        return fused(anchors * 2, references, labels, **LOSSES[loss]) + 1

    torch._dynamo.reset()  # it compiles a function anew for so many losses and no more
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    expected = step(*case.leaves, case.labels)
    value = compiled(*case.leaves, case.labels)
    assert torch.equal(value, expected)
    for a, b in zip(
        torch.autograd.grad(value, case.leaves), torch.autograd.grad(expected, case.leaves), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_leaves_the_parameter_alone(loss: str) -> None:
    fused, _ = functions(loss)
    proxies = torch.nn.Parameter(torch.randn(7, 3, 5))
    net = torch.nn.Linear(4, 5)
    labels = torch.randint(0, 7, (13,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = net(torch.randn(13, 4))
        assert embeddings.dtype == torch.bfloat16
        value = fused(embeddings, proxies, labels, **LOSSES[loss])
    value.backward()
    assert value.dtype == torch.float32
    assert proxies.dtype == torch.float32
    assert proxies.grad is not None
    assert proxies.grad.dtype == torch.float32


@pytest.mark.parametrize("loss", LOSSES)
def test_layouts(loss: str) -> None:
    """Transposed, strided and expanded inputs give what their contiguous copies give."""
    fused, _ = functions(loss)
    base = torch.randn(5, 26).T[::2]  # [13, 5], not contiguous
    proxies = torch.randn(7, 1, 5).expand(7, 3, 5)
    labels = torch.randint(0, 7, (26,))[::2]
    a = base.detach().requires_grad_()
    b = base.detach().clone().contiguous().requires_grad_()
    value_a = fused(a, proxies, labels, **LOSSES[loss])
    value_b = fused(b, proxies.contiguous(), labels.contiguous(), **LOSSES[loss])
    assert torch.equal(value_a, value_b)
    assert torch.equal(torch.autograd.grad(value_a, a)[0], torch.autograd.grad(value_b, b)[0])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("m", "c", "d"), [(0, 4, 5), (4, 0, 5), (0, 0, 5), (4, 4, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(loss: str, m: int, c: int, d: int, reduction: str) -> None:
    fused, _ = functions(loss)
    anchors = torch.randn(m, d, requires_grad=True)
    references = torch.randn(c, d, requires_grad=True)
    for anchor in ("sample", "proxy"):
        value = fused(
            anchors,
            references,
            torch.zeros(m, dtype=torch.int64),
            torch.zeros(c, dtype=torch.int64),
            **LOSSES[loss],
            reduction=reduction,
            anchor=anchor,
        )
        gradients = torch.autograd.grad(value.sum(), (anchors, references))
        assert torch.isfinite(value).all()
        assert [g.shape for g in gradients] == [anchors.shape, references.shape]
        assert all(torch.isfinite(g).all() for g in gradients)


def test_labels_beyond_32_bits_are_told_apart() -> None:
    anchors = torch.randn(4, 8, dtype=torch.float64)
    labels = torch.tensor([5, 5 + 2**32, -7, 2**62])
    references = anchors + 0.1
    expected = F.contrastive(anchors, references, torch.arange(4), torch.arange(4))
    for loss in (F.contrastive, F.triplet):
        expected = loss(anchors, references, torch.arange(4), torch.arange(4))
        assert torch.equal(loss(anchors, references, labels, labels), expected)


def test_only_wanted_gradients_are_computed() -> None:
    case = sample_inputs("proxies", (13, 7, 3, 5))
    memory = case.references.detach()  # type: ignore[union-attr]
    value = F.multi_similarity(case.anchors, memory, case.labels)
    (gradient,) = torch.autograd.grad(value, case.anchors)
    (both, _) = torch.autograd.grad(
        F.multi_similarity(case.anchors, case.references, case.labels), case.leaves
    )
    assert torch.equal(gradient, both)
