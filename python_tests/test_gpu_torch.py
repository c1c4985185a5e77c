"""The CUDA operators as citizens of PyTorch: opcheck, compilation, graphs, streams, devices, autocast, memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_cases import (
    DTYPES,
    LOSSES,
    Case,
    LossCase,
    Pairs,
    neighbor_cases,
    projection_cases,
    selection_cases,
    shard_cases,
)
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast import reference

DEVICE = "cuda"
WITH_INDUCTOR = ("contrastive_l2", "multi_similarity")  # seconds each; the others are traced alike

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def make_case(loss: str, kind: str = "proxies", reduction: str = "mean") -> LossCase:
    return LossCase(loss, kind, DTYPES[0], (37, 29, 3, 33), "unit", reduction)


def step_of(case: LossCase, pairs: Pairs) -> Callable[[], list[Tensor]]:
    """Value and gradients."""
    function = getattr(F, LOSSES[case.loss][0])

    def step() -> list[Tensor]:
        value = function(*pairs, **case.options)
        return [value.detach(), *torch.autograd.grad(value, pairs.leaves)]

    return step


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


# Registration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", ["proxies", "labelled", "batch"])
def test_opcheck_of_losses(loss: str, kind: str) -> None:
    from ccp_fast.ops.similarity_loss import _backward, _forward

    anchors, references, labels, reference_labels = make_case(loss, kind).pairs().on(DEVICE)
    within_batch = references is None
    parameters = [v for v in LOSSES[loss][1].values() if isinstance(v, float)]
    if references is None:
        references, reference_labels = anchors, labels
    for reduction, proxy_rows in [("mean", False), ("none", True)]:
        tail = (loss, parameters, "ball", reduction, proxy_rows, within_batch, False)
        inputs = (anchors, references, labels, reference_labels)
        torch.library.opcheck(_forward, (*inputs, *tail))
        value, *saved = _forward(*inputs, *tail)
        detached = (x if x is None else x.detach() for x in inputs)
        torch.library.opcheck(_backward, (torch.ones_like(value), *detached, *saved, *tail, True, True))


def test_opcheck_of_the_others() -> None:
    points, offsets = normal(23, 5), torch.tensor([0, 7, 7, 23], device=DEVICE)
    arguments = (points, offsets, None, None, 3, "none", False)
    torch.library.opcheck(torch.ops.ccp_fast.farthest_points.default, arguments)
    neighbors = torch.ops.ccp_fast.nearest_references.default
    torch.library.opcheck(neighbors, (points, normal(4, 3, 5), 20, "unit", False, False))
    torch.library.opcheck(neighbors, (points, points, 1, "none", True, False))
    lists = [[normal(n, seed=n + i) for n in (3, 70)] for i in range(3)]
    torch.library.opcheck(torch.ops.ccp_fast.projection_grad_.default, (*lists, 0.3))


@pytest.mark.parametrize("loss", LOSSES)
def test_create_graph_equals_reference(loss: str) -> None:
    case, results = make_case(loss), []
    for module in (F, reference):
        pairs = case.pairs().on(DEVICE)
        value = getattr(module, LOSSES[loss][0])(*pairs, **case.options)
        first = torch.autograd.grad(value, pairs.leaves, create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        results.append(torch.autograd.grad(penalty, pairs.leaves))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max()))


# Compilation and graphs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_compiles_without_a_graph_break(loss: str) -> None:
    case = make_case(loss)
    pairs = case.pairs().on(DEVICE)
    function = getattr(F, LOSSES[loss][0])

    def step(anchors: Tensor, references: Tensor, labels: Tensor) -> Tensor:
        return function(anchors * 2, references, labels, **case.options) + 1

    compiled = torch.compile(
        step, fullgraph=True, backend="inductor" if loss in WITH_INDUCTOR else "aot_eager"
    )
    arguments = (pairs.anchors, pairs.references, pairs.labels)
    value, expected = compiled(*arguments), step(*arguments)
    torch.testing.assert_close(value, expected)
    for a, b in zip(
        torch.autograd.grad(value, pairs.leaves), torch.autograd.grad(expected, pairs.leaves), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_choices_compile_without_a_graph_break() -> None:
    points = normal(12, 7, 20)
    classes = torch.compile(lambda x: F.nearest_reference(x * 2, points).indices // 7, fullgraph=True)
    assert torch.equal(classes(points[:, 0]), F.nearest_reference(points[:, 0] * 2, points).indices // 7)
    pick = torch.compile(lambda x: F.farthest_points(x * 2, 3).indices + 1, fullgraph=True)
    assert torch.equal(pick(points), F.farthest_points(points * 2, 3).indices + 1)


def captured(step: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()
    return graph, outputs


@pytest.mark.parametrize("kind", ["proxies", "proxies as rows", "batch", "memory"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_graph_replays_the_bits_of_a_call_on_new_numbers(loss: str, kind: str) -> None:
    case = make_case(loss, kind)
    pairs = case.draw(0).on(DEVICE)
    graph, outputs = captured(step_of(case, pairs))
    for seed in (1, 2):
        other = case.draw(seed).on(DEVICE)
        with torch.no_grad():
            for mine, new in zip(pairs, other, strict=True):
                if mine is not None:
                    mine.copy_(new)
        graph.replay()
        for a, b in zip(outputs, step_of(case, other)(), strict=True):
            assert torch.equal(a, b)


def test_graphs_of_selection_and_projection() -> None:
    points = normal(50, 7, 33)
    graph, (indices, radii) = captured(lambda: list(F.farthest_points(points, 4)))
    points.copy_(normal(50, 7, 33, seed=1))
    graph.replay()
    expected = F.farthest_points(points, 4)
    assert torch.equal(indices, expected.indices)
    assert torch.equal(radii, expected.radii)

    anchors, references = normal(50, 33), normal(700, 33, seed=1)
    graph, neighbors = captured(lambda: list(F.nearest_references(anchors, references, 9)))
    anchors.copy_(normal(50, 33, seed=2))
    graph.replay()
    for a, b in zip(neighbors, F.nearest_references(anchors, references, 9), strict=True):
        assert torch.equal(a, b)

    params, previous, grads = ([normal(n, seed=n + i) for n in (5, 4097)] for i in range(3))
    graph, (penalty,) = captured(lambda: [F.projection_grad_(params, previous, 0.3, grads)])
    for param in params:
        param.mul_(2)
    ours = [grad.clone() for grad in grads]
    graph.replay()
    assert torch.equal(penalty, F.projection_grad_(params, previous, 0.3, ours))
    for a, b in zip(grads, ours, strict=True):
        assert torch.equal(a, b)


# Streams and devices --------------------------------------------------------------------------------------------


def delayed_copy(into: list[Tensor], new: list[Tensor]) -> None:
    """Numbers that arrive late on the current stream: whoever reads on another stream reads the old ones."""
    a = torch.randn(4096, 4096, device=DEVICE)
    for _ in range(20):
        a = a @ a
        a = a / a.norm()
    with torch.no_grad():
        for old, x in zip(into, new, strict=True):
            old.copy_(x + 0 * a[0, 0].nan_to_num())


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_run_on_the_current_stream(loss: str) -> None:
    case = make_case(loss)
    pairs, other = case.draw(0).on(DEVICE), case.draw(1).on(DEVICE)
    labels = pairs.labels
    expected = step_of(case, other._replace(labels=labels))()
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        delayed_copy(pairs.leaves, [leaf.detach() for leaf in other.leaves])
        found = step_of(case, pairs)()
    side.synchronize()
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_selection_and_projection_run_on_the_current_stream() -> None:
    points, late = normal(40, 7, 33), normal(40, 7, 33, seed=1)
    expected, neighbors = F.farthest_points(late, 3), F.nearest_references(late.flatten(0, 1), None, 3)
    params, new, grads = [normal(999)], [normal(999, seed=1)], [torch.zeros(999, device=DEVICE)]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        delayed_copy([points, *params], [late, *new])
        found, found_neighbors = (
            F.farthest_points(points, 3),
            F.nearest_references(points.flatten(0, 1), None, 3),
        )
        F.projection_grad_(params, [torch.zeros_like(p) for p in params], 0.5, grads)
    side.synchronize()
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found_neighbors.indices, neighbors.indices)
    assert torch.equal(grads[0], 0.5 * new[0])


def test_several_streams_at_once() -> None:
    """Each call has scratch of its own."""
    case = make_case("proxy_nca")
    inputs = [case.draw(seed).on(DEVICE) for seed in range(8)]
    expected = [step_of(case, pairs)() for pairs in inputs]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in inputs]
    found: list[list[Tensor]] = [[] for _ in inputs]
    for _ in range(10):
        for i, (stream, pairs) in enumerate(zip(streams, inputs, strict=True)):
            with torch.cuda.stream(stream):
                found[i] = step_of(case, pairs)()
    torch.cuda.synchronize()
    for these, those in zip(found, expected, strict=True):
        for a, b in zip(these, those, strict=True):
            assert torch.equal(a, b)


needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


@needs_two
@pytest.mark.parametrize(
    "case", [*selection_cases(), *neighbor_cases(), *projection_cases(), *shard_cases()], ids=str
)
def test_any_operator_runs_where_its_tensors_are(case: Case) -> None:
    assert case.problems("cuda:1") == []
    assert torch.cuda.current_device() == 0


@needs_two
@pytest.mark.parametrize("loss", LOSSES)
def test_tensors_decide_about_the_device(loss: str) -> None:
    case = make_case(loss)
    expected = step_of(case, case.draw(0).on("cuda:0"))()
    found = step_of(case, case.draw(0).on("cuda:1"))()
    assert torch.cuda.current_device() == 0
    for a, b in zip(found, expected, strict=True):
        assert a.device == torch.device("cuda:1")
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-5, atol=1e-6)


def test_tensors_of_two_devices_are_refused() -> None:
    anchors, labels = normal(4, 3), torch.arange(4, device=DEVICE)
    with pytest.raises(ValueError, match=r"references: expected on cuda:0, the anchors' device, got cpu"):
        F.proxy_nca(anchors, torch.randn(4, 1, 3), labels)
    with pytest.raises(ValueError, match=r"seeds: expected device cuda:0, that of points, got cpu"):
        F.farthest_points(anchors, 2, seeds=torch.randn(1, 3))


# Precision and memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_leaves_the_parameter_alone(loss: str) -> None:
    name, options, _ = LOSSES[loss]
    proxies = torch.nn.Parameter(normal(7, 3, 5))
    net = torch.nn.Linear(4, 5, device=DEVICE)
    labels = torch.randint(0, 7, (13,), device=DEVICE)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        embeddings = net(normal(13, 4, seed=1))
        assert embeddings.dtype == torch.bfloat16
        value = getattr(F, name)(embeddings, proxies, labels, **options)
    value.backward()
    assert value.dtype == torch.float32
    assert proxies.dtype == torch.float32
    assert proxies.grad is not None
    assert proxies.grad.dtype == torch.float32


def peak_extra(step: Callable[[], Any]) -> int:
    """Bytes beyond what was there before and the results."""
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    outputs = step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - sum(output.nbytes for output in outputs)


@pytest.mark.parametrize("rows", [128, 4096])
@pytest.mark.parametrize("loss", LOSSES)
def test_extra_memory_grows_with_the_sides_and_not_with_the_pairs(loss: str, rows: int) -> None:
    """A million proxies: the matrix of pairs would take 0.5 or 16 GB."""
    classes, per_class, dim = 250_000, 4, 64
    proxies = torch.randn(classes, per_class, dim, device=DEVICE, requires_grad=True)
    anchors = torch.randn(rows, dim, device=DEVICE, requires_grad=True)
    labels = torch.randint(0, classes, (rows,), device=DEVICE)
    pairs = Pairs(anchors, proxies, labels, None)
    case = LossCase(loss, "proxies", DTYPES[0], (rows, classes, per_class, dim), "unit", "mean")
    extra = peak_extra(step_of(case, pairs))
    # 64 bytes for each row and column, and what the blocks that are under way hold
    assert extra < 64 * (rows + classes * per_class) + 128e6, f"{extra / 1e6:.0f} MB"
