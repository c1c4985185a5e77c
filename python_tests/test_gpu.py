"""The operators' CUDA kernels on a GPU: against float64, against the CPU, at their edges, and always the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_cases import (
    DTYPES,
    KINDS,
    LOSSES,
    NORMALIZE,
    REDUCTIONS,
    Case,
    LossCase,
    Pairs,
    all_cases,
    hopper_cases,
    largest,
)
from torch import Tensor

import ccp_fast
import ccp_fast.functional as F
from ccp_fast.bench.accuracy import beyond_budget, errors
from ccp_fast.bench.baselines import pairs as pair_losses
from ccp_fast.bench.baselines import truth
from ccp_fast.bench.case import Place
from ccp_fast.bench.cases import losses
from ccp_fast.evaluation import nearest
from ccp_fast.ops.centre_spread import centre_spread

DEVICE = "cuda"
RUNS = 100

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def needs_gigabytes(count: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < count * 1e9:
        pytest.skip(f"needs {count:g} GB of free memory on the GPU, {free / 1e9:.0f} are")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    random = torch.Generator(DEVICE).manual_seed(seed)
    return torch.randn(*shape, generator=random, device=DEVICE).to(dtype)


def test_this_build_has_the_kernels() -> None:
    """Otherwise every other test here would fail with the same sentence."""
    info = ccp_fast.info()
    assert info["cuda_built"], info["missing"]


# Against float64 and the CPU ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_equals_float64_and_the_cpu(case: Case) -> None:
    assert case.problems(DEVICE) == []


needs_hopper = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="needs a Hopper GPU"
)


@needs_hopper
@pytest.mark.parametrize("case", hopper_cases(), ids=str)
def test_the_path_for_hopper(case: LossCase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCP_FAST_HOPPER", "1")
    assert case.problems(DEVICE) == []
    pairs, function = case.pairs().on(DEVICE), getattr(F, LOSSES[case.loss][0])
    first, second = (function(*pairs, **case.options) for _ in range(2))
    assert torch.equal(first, second)


@needs_hopper
@pytest.mark.parametrize("switch", ["0", "1"])
def test_the_path_for_hopper_is_taken_with_the_switch_alone(
    switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCP_FAST_HOPPER", switch)
    case = hopper_cases()[0]
    pairs = case.pairs().on(DEVICE)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        getattr(F, LOSSES[case.loss][0])(*pairs, **case.options)
        torch.cuda.synchronize()
    assert any("hopper" in event.name for event in profile.events()) == (switch == "1")


@settings(max_examples=60)
@given(
    loss=st.sampled_from(sorted(LOSSES)),
    kind=st.sampled_from(KINDS),
    dtypes=st.sampled_from(DTYPES),
    shape=st.tuples(st.integers(1, 150), st.integers(1, 70), st.integers(1, 4), st.integers(8, 140)),
    normalize=st.sampled_from(NORMALIZE),
    reduction=st.sampled_from(REDUCTIONS),
)
def test_any_shape(loss: str, kind: str, dtypes: Any, shape: Any, normalize: Any, reduction: str) -> None:
    assert LossCase(loss, kind, dtypes, shape, normalize, reduction).problems(DEVICE) == []


def test_lifted_pairs() -> None:
    """The paper's form of lifted structure: the same as on the CPU, and the same bits again."""
    labels = torch.randint(0, 17, (131,), generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", DEVICE, DEVICE):
        embeddings = normal(131, 37).to(device).requires_grad_()
        value = F.lifted_structure(embeddings, None, labels.to(device))
        results.append([value.detach().cpu(), torch.autograd.grad(value, embeddings)[0].cpu()])
    for plain, first, again in zip(*results, strict=True):
        torch.testing.assert_close(first, plain, rtol=1e-5, atol=1e-6)
        assert torch.equal(first, again)


@contextmanager
def torchs_setting(name: str, value: str) -> Iterator[None]:
    """Of the precision of float32 products: by torch's older or newer name for it."""
    before = getattr(torch, f"get_{name}", lambda: torch.backends.cuda.matmul.fp32_precision)()

    def change(to: str) -> None:
        if name == "float32_matmul_precision":
            torch.set_float32_matmul_precision(to)
        else:
            torch.backends.cuda.matmul.fp32_precision = to

    change(value)
    try:
        yield
    finally:
        change(before)


@pytest.mark.parametrize(
    ("setting", "precise", "rounded"),
    [("float32_matmul_precision", "highest", "high"), ("fp32_precision", "ieee", "tf32")],
)
def test_tf32_only_where_torch_allows_it(setting: str, precise: str, rounded: str) -> None:
    case = LossCase("multi_similarity", "proxies", DTYPES[0], (70, 300, 3, 128), "unit", "mean")
    pairs = case.pairs()
    truth = case.gradients(F.multi_similarity, pairs.on("cpu", wide=torch.float64))[1]
    off = {}
    for precision in (precise, rounded):
        with torchs_setting(setting, precision):
            found = case.gradients(F.multi_similarity, pairs.on(DEVICE))[1]
        off[precision] = largest(found - truth) / largest(truth)
    assert off[precise] < 2e-5
    assert off[precise] < off[rounded] < 5e-2


# Proxy-Anchor sums over columns and is not taken in parts: its matrix in float64 has to have room, a few times.
LARGE = [
    (loss, 5_000 if loss.stem == "proxy_anchor" else 250_000)
    for loss in losses.LOSSES
    if "sop-512" in loss.settings
]


@pytest.mark.parametrize(("loss", "classes"), LARGE, ids=lambda x: getattr(x, "name", None))
def test_gradients_against_many_proxies_err_as_little_as_eagers(
    loss: losses.Loss, classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4,096 samples against a million proxies, of which eager has no room for the matrix either: both go by parts."""
    needs_gigabytes(12)
    monkeypatch.setattr(truth, "PAIRS_AT_ONCE", 1 << 26)  # others are tested at the same time
    case = losses.case(loss, "1e6", losses.Shape(4096, 64, classes, 4), Place(DEVICE))
    inputs = case.inputs()
    assert inputs.references is not None
    true = case.truth(inputs)
    undecided = case.undecided(inputs) if case.undecided else None
    if loss.stem == "proxy_anchor":
        plain = losses.forward_backward(partial(pair_losses.loss_of, loss.eager), inputs)()
    else:
        leaves = inputs.anchors, inputs.references, inputs.labels
        plain = truth.value_and_gradients(loss.eager, *leaves, dtype=torch.float32)
    eager = errors(plain, true, undecided)
    del plain
    ours = errors(losses.forward_backward(loss.ours, inputs)(), true, undecided)
    assert beyond_budget(ours, eager, "float32") is None


# Edges ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("m", "c", "d"), [(0, 4, 5), (4, 0, 5), (0, 0, 5), (4, 4, 0)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(loss: str, m: int, c: int, d: int, reduction: str) -> None:
    name, options, _ = LOSSES[loss]
    for anchor in ("sample", "proxy"):
        anchors, references = (normal(n, d).requires_grad_() for n in (m, c))
        labels = (torch.zeros(n, dtype=torch.int64, device=DEVICE) for n in (m, c))
        here = {**options, "reduction": reduction, "anchor": anchor}
        value = getattr(F, name)(anchors, references, *labels, **here)
        gradients = torch.autograd.grad(value.sum(), (anchors, references))
        assert torch.isfinite(value).all()
        assert [g.shape for g in gradients] == [anchors.shape, references.shape]
        assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("loss", LOSSES)
def test_labels_of_no_class_match_nothing(loss: str) -> None:
    """Out of range of the proxies' classes: what the CPU refuses has no positives here, and nothing else happens."""
    name = LOSSES[loss][0]
    case = LossCase(loss, "proxies", DTYPES[0], (23, 7, 3, 20), "unit", "none")
    anchors, references, labels, _ = case.pairs()
    assert references is not None
    labels = labels.clone()
    labels[::4] = torch.tensor([7, -1, 2**40, -(2**62), 10**18, 99])
    of_columns = torch.arange(7).repeat_interleave(3)
    expected = case.gradients(
        getattr(F, name), Pairs(anchors, references.flatten(0, 1), labels, of_columns).on("cpu")
    )
    found = case.gradients(getattr(F, name), Pairs(anchors, references, labels, None).on(DEVICE))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.flatten(), b.flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_layouts(loss: str) -> None:
    """Transposed, strided and expanded inputs give what their contiguous copies give."""
    name, options, _ = LOSSES[loss]
    anchors = normal(5, 26).T[::2].detach().requires_grad_()
    proxies = normal(7, 1, 5).expand(7, 3, 5)
    labels = torch.randint(0, 7, (26,), device=DEVICE)[::2]
    copy = anchors.detach().contiguous().clone().requires_grad_()
    value = getattr(F, name)(anchors, proxies, labels, **options)
    same = getattr(F, name)(copy, proxies.contiguous(), labels.contiguous(), **options)
    assert torch.equal(value, same)
    assert torch.equal(torch.autograd.grad(value, anchors)[0], torch.autograd.grad(same, copy)[0])


def test_distance_zero_has_the_gradient_zero() -> None:
    anchors = normal(40, 33).requires_grad_()
    references = anchors.detach().clone().requires_grad_()
    labels = torch.arange(40, device=DEVICE)
    value = F.contrastive(anchors, references, labels, labels, neg_margin=0.0, normalize=None)
    assert value.item() == 0.0
    for gradient in torch.autograd.grad(value, (anchors, references)):
        assert not gradient.any()


@pytest.mark.parametrize("normalize", ["unit", "ball"])
def test_what_normalising_makes_equal_has_distance_and_gradient_zero(normalize: Any) -> None:
    """Twice a vector outside of the ball is the same point; inside of it, the vector itself is."""
    anchors = normal(40, 33).requires_grad_()  # norms near 5.7
    with torch.no_grad():
        anchors[::2] *= 0.05 if normalize == "ball" else 1.0
    factor = torch.tensor([1.0, 2.0] * 20, device=DEVICE)[:, None]
    references = (anchors.detach() * factor).requires_grad_()
    labels = torch.arange(40, device=DEVICE)
    value = F.contrastive(anchors, references, labels, labels, neg_margin=0.0, normalize=normalize)
    assert value.item() == 0.0
    for gradient in torch.autograd.grad(value, (anchors, references)):
        assert not gradient.any()


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("loss", LOSSES)
def test_duplicates_on_both_sides(loss: str, normalize: Any) -> None:
    """Of the same class and of others, within a batch and among proxies: finite, and what the CPU says."""
    function, options, _ = LOSSES[loss]
    points = normal(9, 21).repeat(3, 1)
    labels = (
        torch.arange(27, device=DEVICE) % 9 // 2
    )  # each point meets itself as a positive, its neighbour as another's
    for references in (None, points[:18].view(9, 2, 21)):
        found = []
        for device in (DEVICE, "cpu"):
            leaves = [
                x.to(device).detach().clone().requires_grad_() for x in (points, references) if x is not None
            ]
            inputs = (leaves[0], leaves[1] if references is not None else None, labels.to(device))
            value = getattr(F, function)(*inputs, normalize=normalize, **options)
            found.append([value.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(value, leaves))])
        for ours, theirs in zip(*found, strict=True):
            assert torch.isfinite(ours).all()
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * max(1.0, largest(theirs)))


def test_coinciding_centres_do_not_repel() -> None:
    centres = normal(6, 1, 19).repeat(1, 4, 1).requires_grad_()
    value = centre_spread(centres)
    assert value.item() == 0.0
    assert not torch.autograd.grad(value, centres)[0].any()
    samples, labels = normal(11, 19, seed=1), torch.arange(11, device=DEVICE) % 6
    for device in (DEVICE, "cpu"):
        proxies = centres.detach().to(device).requires_grad_()
        loss = F.soft_triple(samples.to(device), proxies, labels.to(device))
        (gradient,) = torch.autograd.grad(loss, proxies)
        assert torch.isfinite(gradient).all()
        torch.testing.assert_close(gradient, gradient[:, :1].expand_as(gradient), rtol=1e-5, atol=1e-7)


def test_nan_is_never_picked_while_another_point_is_left() -> None:
    points = normal(4, 6, 5)
    points[:, 2] = torch.nan
    picks = F.farthest_points(points, 5).indices % 6
    assert sorted(picks[0].tolist()) == [0, 1, 3, 4, 5]
    assert (picks != 2).all()


@pytest.mark.parametrize("k", [1, 5])
def test_what_has_no_distance_is_no_neighbour(k: int) -> None:
    anchors, references = normal(9, 6), normal(40, 6, seed=1)
    references[::3, 2], anchors[4] = torch.nan, torch.inf
    found = F.nearest_references(anchors, references, k)
    others = [i for i in range(9) if i != 4]
    assert (found.indices[others] % 3 != 0).all()
    assert (found.indices[4] == -1).all()
    assert (found.distances[4] == torch.inf).all()


@pytest.mark.parametrize("normalize", NORMALIZE)
def test_retrieval_ranks_as_on_the_cpu(normalize: str | None) -> None:
    """Exactly, whatever the float32 candidates were."""
    points = normal(3000, 48)
    points[1000:1500] = points[:500] + 1e-6 * normal(500, 48, seed=1)
    points[2000:] = points[7]
    there, here = (nearest(x, 9, normalize=normalize) for x in (points, points.cpu()))
    assert torch.equal(there.indices.cpu(), here.indices)
    assert torch.equal(there.distances.cpu(), here.distances)


def test_doubles_are_refused_in_one_sentence() -> None:
    anchors = normal(4, 3).double()
    with pytest.raises(
        RuntimeError, match="anchors: expected float32, bfloat16 or float16 on a GPU, got float64"
    ):
        F.proxy_nca(anchors, anchors[:, None], torch.arange(4, device=DEVICE))
    with pytest.raises(RuntimeError, match="anchors: expected float32, bfloat16 or float16 on a GPU"):
        F.nearest_reference(anchors, anchors)


# Beyond 2^31 elements -------------------------------------------------------------------------------------------

MANY = 17_000_003  # times 128 components, and times 130 anchors, is more than 2^31


def test_more_than_2_31_pairs_and_components() -> None:
    needs_gigabytes(16)
    dim, rows, temperature, chunk = 128, 130, 1 / 9, 1_000_000
    anchors = normal(rows, dim, dtype=torch.bfloat16).requires_grad_()
    proxies = torch.empty(MANY, 1, dim, dtype=torch.bfloat16, device=DEVICE)
    for start in range(0, MANY, chunk):
        proxies[start : start + chunk] = normal(min(chunk, MANY - start), 1, dim, seed=start)
    proxies.requires_grad_()
    labels = MANY - 1 - torch.arange(rows, device=DEVICE) * 1000
    value = F.proxy_nca(anchors, proxies, labels, temperature=temperature)
    _, gradient = torch.autograd.grad(value, (anchors, proxies))

    unit = torch.nn.functional.normalize(anchors.detach().double(), dim=1)

    def logits(part: Tensor) -> Tensor:
        return unit @ torch.nn.functional.normalize(part.double(), dim=1).T * (2 / temperature)

    lse = torch.stack([logits(part).logsumexp(1) for part in proxies.detach()[:, 0].split(chunk)]).logsumexp(
        0
    )
    own = proxies.detach()[labels, 0].requires_grad_()
    of_own = logits(own)
    assert value.item() == pytest.approx((lse - of_own.diagonal()).mean().item(), rel=1e-4)
    weight = ((of_own - lse[:, None]).exp() - torch.eye(rows, device=DEVICE)) / rows
    (expected,) = torch.autograd.grad(of_own, own, weight.detach())
    assert largest(gradient[labels, 0].double() - expected.double()) < 2e-2 * largest(expected)


def test_farthest_points_beyond_2_31_components() -> None:
    needs_gigabytes(16)
    points = torch.zeros(MANY, 128, dtype=torch.bfloat16, device=DEVICE)
    far = [MANY - 5, 3, MANY - 70_000]
    for i, row in enumerate(far):
        points[row, i] = 9 - 2 * i
    found = F.farthest_points(points, 4)
    assert found.indices[0, :3].tolist() == far
    assert found.radii[0, 2].item() == 5.0  # of the last of them to the zeros


@pytest.mark.parametrize("k", [1, 5])
def test_nearest_references_beyond_2_31_components(k: int) -> None:
    needs_gigabytes(16)
    references = torch.zeros(MANY, 128, dtype=torch.bfloat16, device=DEVICE)
    near = [MANY - 5, 3, MANY - 70_000, 2**24 + 1, 77]
    anchors = normal(5, 128, dtype=torch.bfloat16)
    references[near] = anchors
    found = F.nearest_references(anchors, references, k)
    assert found.indices[:, 0].tolist() == near
    assert not found.distances[:, 0].any()
    assert found.indices[:, 1:].tolist() == [[0, 1, 2, 4][: k - 1]] * 5  # then the zeros in their order


def test_a_parameter_beyond_2_31_elements() -> None:
    needs_gigabytes(16)
    size = 2**31 + 1001
    param, previous, grad = (torch.zeros(size, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    param[-3:] = torch.tensor([1.0, -2.0, 3.0])
    param[0] = 4.0
    penalty = F.projection_grad_([param], [previous], 0.5, [grad])
    assert grad[-3:].tolist() == [0.5, -1.0, 1.5]
    assert (grad[0].item(), grad[1:-3].count_nonzero().item()) == (2.0, 0)
    assert penalty.item() == 0.25 * (1 + 4 + 9 + 16)


# The same bits --------------------------------------------------------------------------------------------------


def bits(x: Tensor) -> Tensor:
    return x.flatten().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same_bits(results: Sequence[Sequence[Tensor]]) -> None:
    same = [
        (bits(a) == bits(b)).all() for other in results[1:] for a, b in zip(results[0], other, strict=True)
    ]
    assert torch.stack(same).all()


@pytest.mark.parametrize("kind", ["proxies", "proxies as rows", "labelled", "batch", "memory"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_give_the_same_bits(loss: str, kind: str) -> None:
    classes = 40 if kind == "batch" else 700
    rows = (
        131 if kind == "labelled" else 100
    )  # more than backward's one pass for both gradients takes, and fewer
    case = LossCase(loss, kind, DTYPES[0], (rows, classes, 3, 70), "unit", "mean")
    pairs = case.draw().on(DEVICE)
    function = getattr(F, LOSSES[loss][0])

    def run() -> list[Tensor]:
        value = function(*pairs, **case.options)
        return [value.detach(), *torch.autograd.grad(value, pairs.leaves)]

    assert_same_bits([run() for _ in range(RUNS)])


@pytest.mark.parametrize("sizes", [(7,) * 500, (100_003,)])
def test_selections_give_the_same_bits(sizes: tuple[int, ...]) -> None:
    points = normal(sum(sizes), 64)
    offsets = torch.tensor([0, *sizes], device=DEVICE).cumsum(0)
    assert_same_bits([F.farthest_points(points, 5, offsets=offsets) for _ in range(RUNS)])


@pytest.mark.parametrize("k", [1, 10, 300])
@pytest.mark.parametrize("anchors", [7, 4000])
def test_neighbors_give_the_same_bits(anchors: int, k: int) -> None:
    points, references = normal(anchors, 64), normal(30_011, 64, seed=1)
    references[100::3] = references[5]
    assert_same_bits([F.nearest_references(points, references, k, normalize="unit") for _ in range(RUNS)])


def test_projections_give_the_same_bits() -> None:
    params, previous, grads = ([normal(n, seed=3 * n + i) for n in (1, 1000, 300_001)] for i in range(3))
    results = []
    for _ in range(RUNS):
        ours = [grad.clone() for grad in grads]
        penalty = F.projection_grad_(params, previous, 0.3, ours)
        results.append([*ours, penalty])
    assert_same_bits(results)
