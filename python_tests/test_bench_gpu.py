"""`ccp-bench gpu` as far as a CPU can tell: its cases, what competes in them, and the ceilings."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import one_thread  # noqa: F401
from pretended_gpu import RATES, PretendedGpu
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast.bench.accuracy import errors
from ccp_fast.bench.baselines import cross_entropy, farthest, lists, pairs, truth
from ccp_fast.bench.case import Case, Implementation, Outputs, Place, Work
from ccp_fast.bench.cases import hopper, k_center, losses, projection, select
from ccp_fast.bench.cases.gpu import SHAPES, gpu_cases
from ccp_fast.bench.gpu import runner
from ccp_fast.bench.gpu.ceilings import Rates, matmul_precision
from ccp_fast.bench.gpu.ceilings import measure as measure_ceilings

ROOT = Path(__file__).resolve().parents[1]
TOY = gpu_cases("toy", "cpu")
OPTIONS = runner.Options("toy", seconds=0.0, compile=False, runs=3)


# Of value and gradients. In bfloat16 hinges and 1/distance turn roundings into tenths; another formula is off by more.
TOLERANCE = {"float32": (3e-6, 3e-5), "tf32": (3e-6, 3e-5), "bfloat16": (6e-2, 0.7)}


# --- cross-entropy peers ----------------------------------------------------------------------------------------


def heads() -> Iterator[Callable[[], cross_entropy.Head]]:
    yield cross_entropy.eager
    if hasattr(torch.nn.functional, "linear_cross_entropy"):
        yield cross_entropy.torch_linear(chunked=False)


@pytest.mark.parametrize("make", list(heads()), ids=lambda make: make.__qualname__.split(".")[0])
def test_proxy_nca_of_one_proxy_is_a_cross_entropy(make: Callable[[], cross_entropy.Head]) -> None:
    random = torch.Generator().manual_seed(0)
    anchors = (2 * torch.randn(9, 6, generator=random, dtype=torch.float64)).requires_grad_()
    proxies = (0.3 * torch.randn(17, 1, 6, generator=random, dtype=torch.float64)).requires_grad_()
    labels = torch.randint(0, 17, (9,), generator=random)
    ours = F.proxy_nca(anchors, proxies, labels, temperature=0.2, variant="plus_plus", normalize="unit")
    logits = (
        -(torch.cdist(*(torch.nn.functional.normalize(x, dim=1) for x in (anchors, proxies[:, 0]))) ** 2)
        / 0.2
    )
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, labels))
    # The peers' way to it rounds hidden states by way of float32; the formula is checked in float64 all through.
    hidden = 2 / 0.2 * torch.nn.functional.normalize(anchors, dim=1)
    theirs = make()(hidden, cross_entropy.vocabulary(proxies), labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad(ours, (anchors, proxies)), torch.autograd.grad(theirs, (anchors, proxies)), strict=True
    ):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_cross_entropy_has_one_proxy_a_class() -> None:
    with pytest.raises(ValueError, match=r"references: expected one proxy a class, .*got \[5, 2, 3\]"):
        cross_entropy.vocabulary(torch.ones(5, 2, 3))


# --- cases ------------------------------------------------------------------------------------------------------


ONE_OF_EACH = list({(case.family, case.name, case.precision): case for case in TOY}.values())


@pytest.mark.parametrize(
    "case", ONE_OF_EACH, ids=["-".join((*case.key[1:], case.precision)) for case in ONE_OF_EACH]
)
def test_all_competitors_compute_the_same(case: Case) -> None:
    inputs = case.inputs()
    truth = case.truth(inputs)
    value, gradient = TOLERANCE[case.precision]
    ran = 0
    for competitor in case.implementations:
        if competitor.role == "compiled":
            continue
        try:
            outputs = competitor.prepare(inputs)()
        except ImportError:
            continue
        if outputs:
            found = errors(outputs, truth)
            assert found.value < value, competitor.name
            assert (found.gradient or 0.0) < gradient, competitor.name
            ran += 1
    assert ran >= 2


@pytest.mark.parametrize("words", ["c2+sop", "proxy_nca-k1", "triplet+batch"])
def test_passes_are_the_step_in_two(words: str) -> None:
    case = select(TOY, words)[0]
    inputs = case.inputs()
    whole = case.implementations[0].prepare(inputs)()
    assert case.passes is not None
    forward, backward = case.passes(inputs)
    for _ in range(2):
        for a, b in zip(whole, [*forward(), *backward()], strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("loss", losses.LOSSES, ids=lambda loss: loss.name)
def test_the_truth_in_parts_is_that_of_the_whole(loss: losses.Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    case = losses.case(loss, "sop", SHAPES["toy"]["sop"])
    inputs = case.inputs()
    whole = losses.forward_backward(partial(pairs.loss_of, loss.eager), inputs.double())()
    monkeypatch.setattr(truth, "PAIRS_AT_ONCE", 5 * 160)
    monkeypatch.setattr(truth, "ITEMS_AT_ONCE", 33)
    for a, b in zip(case.truth(inputs), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("family", ["losses", "neighbors"])
def test_collapsed_embeddings_are_all_close(family: str) -> None:
    """So close that the kernels compute each pair from its difference, which of the usual inputs they seldom do."""
    header = ROOT / "csrc" / "kernels" / "cuda" / "similarity_loss" / "infos.cuh"
    (divisor,) = re.findall(r"kClose = 1\.0f / (\d+);", header.read_text())
    shares = {}
    for setting in ("sop", "collapsed"):
        names = ("c2", "nearest_references")
        case = next(
            case for case in TOY if case.family == family and case.name in names and case.setting == setting
        )
        inputs = case.inputs()
        anchors, references = (
            torch.nn.functional.normalize(x.detach().double(), dim=-1)
            for x in (inputs.anchors, inputs.references.flatten(0, -2))
        )
        shares[setting] = (torch.cdist(anchors, references) ** 2 < 2 / int(divisor)).double().mean()
        found = errors(case.implementations[0].prepare(inputs)(), case.truth(inputs))
        assert found.value < TOLERANCE["float32"][0]
        assert (found.gradient or 0.0) < TOLERANCE["float32"][1]
    assert shares["collapsed"] == 1
    assert shares["sop"] < 0.1


def test_a_pair_on_a_margin_is_undecided_and_no_other() -> None:
    loss = next(loss for loss in losses.LOSSES if loss.name == "c1")  # s above 0.5
    case = losses.case(loss, "sop", SHAPES["toy"]["sop"])
    assert case.undecided is not None
    beside = (0.5 + 1e-6, (1 - (0.5 + 1e-6) ** 2) ** 0.5)
    inputs = losses.Inputs(torch.eye(2), torch.tensor([[[1.0, 0.0]], [beside]]), torch.tensor([0, 1]))
    _, anchors, proxies = case.undecided(inputs)
    assert (anchors > 0.1).tolist() == [True, False]
    assert (proxies > 0.1).tolist() == [[False], [True]]


def test_every_case_has_its_own_key_and_the_same_in_every_size() -> None:
    keys = [(*case.key, case.precision) for case in gpu_cases("full", "cpu")]
    assert len(set(keys)) == len(keys)
    assert keys == [(*case.key, case.precision) for case in TOY]
    assert {setting for _, _, setting, _ in keys} >= {"sop", "sop-512", "1e5", "1e6", "1e7", "b32", "b4096"}


def test_the_path_for_hopper_competes_where_it_can_be_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def precisions(device: str) -> set[str]:
        return {
            case.precision
            for case in gpu_cases("toy", device)
            for competitor in case.implementations
            if competitor.role == "path"
        }

    assert precisions("cpu") == set()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for capability, expected in (((9, 0), {"bfloat16"}), ((10, 0), set())):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert precisions("cuda:0") == expected
    assert precisions("cuda:1") == set()


@pytest.mark.parametrize("before", [None, "0"])
def test_the_switch_for_hopper_is_on_in_its_steps_alone(
    before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CCP_FAST_HOPPER", raising=False)
    if before is not None:
        monkeypatch.setenv("CCP_FAST_HOPPER", before)
    seen = []

    def step() -> Outputs:
        seen.append(os.environ.get("CCP_FAST_HOPPER"))
        return ()

    switched = hopper.implementation(lambda inputs: step).prepare(None)
    for _ in range(2):
        assert switched() == ()
        assert os.environ.get("CCP_FAST_HOPPER") == before
    assert seen == ["1", "1"]


def test_entries_of_only_joined_by_plus_must_all_fit() -> None:
    assert {(case.setting, case.precision) for case in select(TOY, "1e6+bfloat16")} == {("1e6", "bfloat16")}
    assert len(select(TOY, "1e6+bfloat16,k-center")) == len(select(TOY, "1e6+bfloat16")) + 3
    with pytest.raises(ValueError, match="got half"):
        select(TOY, "1e6+half")


@pytest.mark.parametrize(
    ("setting", "references"), [("sop", 45_272), ("1e6", 1_000_000), ("1e7", 10_000_000)]
)
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_work_at_full_size(setting: str, references: int, dtype: torch.dtype, size: int) -> None:
    shape = SHAPES["full"][setting]
    assert shape.classes * shape.per_class == references
    anchors = torch.empty(shape.anchors, shape.dim, dtype=dtype, device="meta")
    proxies = torch.empty(shape.classes, shape.per_class, shape.dim, dtype=dtype, device="meta")
    inputs = losses.Inputs(anchors, proxies, torch.empty(shape.anchors, dtype=torch.int64, device="meta"))
    work = losses.work(inputs, active=inputs.pairs)
    assert work.flops == 6 * 128 * references * 128
    assert work.bytes == 2 * size * 128 * (128 + references)


def test_active_pairs_are_the_same_in_any_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = losses.make_inputs(SHAPES["toy"]["sop"])
    for loss in losses.LOSSES:
        if not loss.dense:
            whole = losses.active_pairs(loss.eager, inputs)
            with monkeypatch.context() as patch:
                patch.setattr(losses, "AT_ONCE", 5 * 160)
                assert losses.active_pairs(loss.eager, inputs) == whole > 0


def test_copies_move_as_many_bytes_as_the_projection() -> None:
    inputs = projection.make_inputs([(30, 4), (5,)], place=Place(precision="bfloat16"))
    assert inputs.params[0].dtype == torch.bfloat16
    assert projection.work(inputs).bytes == 4 * 2 * 125
    before = torch.ones(2 * 2 * 125, dtype=torch.uint8)  # read once and written once: four passes of 2 bytes
    assert 2 * before.nbytes == projection.work(inputs).bytes


# --- farthest points --------------------------------------------------------------------------------------------


def pretended_sampler(points: Tensor, k: int) -> Tensor:
    return F.farthest_points(points, k - 1, seeds=points[:, :1]).indices % points.shape[1]


def test_a_peer_that_covers_as_well_competes() -> None:
    inputs = k_center.make_started(k_center.Shape(20, 7, 16, 1, 3))

    def with_start(points: Tensor, k: int) -> Tensor:
        return torch.cat([torch.zeros(len(points), 1, dtype=torch.int64), pretended_sampler(points, k)], 1)

    assert k_center._peer(lambda: with_start, inputs)() == ()

    def lazy(points: Tensor, k: int) -> Tensor:
        return torch.zeros(len(points), k, dtype=torch.int64)

    with pytest.raises(RuntimeError, match="its picks cover with other radii than ours, by up to"):
        k_center._peer(lambda: lazy, inputs)


def test_covering_radius() -> None:
    points = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]]])
    assert lists.covering_radius(points, torch.tensor([[0]])).item() == 5.0
    assert lists.covering_radius(points, torch.tensor([[0, 1]])).item() == 1.0
    assert set(farthest.SAMPLERS) == {"torch_cluster", "torch-fps", "torch-quickfps", "torch-quickfps, plain"}


# --- ceilings ---------------------------------------------------------------------------------------------------


def case_of(products: bool, precision: Any) -> Case:
    nothing = Implementation("ours", "ours", lambda inputs: lambda: ())
    return Case("f", "n", "s", "1", lambda: None, lambda inputs: Work(1.0, 1.0), (nothing,), lambda inputs: (),
                precision=precision, products=products)  # fmt: skip


def test_products_of_float32_may_be_three_of_tf32() -> None:
    assert RATES.flops_per_second(case_of(True, "float32")) == 400e12 / 3
    assert RATES.flops_per_second(case_of(True, "tf32")) == 400e12
    assert RATES.flops_per_second(case_of(True, "bfloat16")) == 800e12
    assert RATES.flops_per_second(case_of(False, "bfloat16")) == 50e12
    slow = Rates(1.0, {"bfloat16": 9.0, "tf32": 6.0, "float32": 5.0})
    assert slow.flops_per_second(case_of(True, "float32")) == 5.0


def test_the_precision_of_products_is_set_and_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    with matmul_precision("tf32"):
        assert torch.get_float32_matmul_precision() == "high"
        with matmul_precision("float32"):
            assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("value", ["tf32", "ieee"])
def test_the_precision_is_put_back_where_only_the_newer_setting_knows_it(value: str) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = value
        for precision in ("tf32", "float32"):
            with matmul_precision(precision):  # type: ignore[arg-type]
                assert torch.backends.cuda.matmul.fp32_precision == (
                    "tf32" if precision == "tf32" else "ieee"
                )
            assert torch.backends.cuda.matmul.fp32_precision == value
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


def test_ceilings_count_bytes_read_and_written_and_the_flops_of_a_product() -> None:
    class Constant(PretendedGpu):
        def seconds(self, start: Any, end: Any) -> float:
            return 1e-3

    found = measure_ceilings(Constant(), "cpu", megabytes=1, shrink=128)
    assert found.bytes_per_second == pytest.approx(2e6 / 1e-3)
    assert found.mm_flops_per_second["bfloat16"] == pytest.approx(2 * 64**3 / 1e-3)
    assert found.mm_flops_per_second["float32"] == pytest.approx(2 * 32**3 / 1e-3)
