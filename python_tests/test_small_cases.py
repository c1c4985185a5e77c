"""The small cases of the GPU's tests, on the CPU: that they pass where the operators are right, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_cases
import torch
from helpers import one_thread  # noqa: F401
from small_cases import (
    LossCase,
    NeighborCase,
    ProjectionCase,
    SelectionCase,
    ShardCase,
    hopper_cases,
    loss_cases,
    neighbor_cases,
    projection_cases,
    selection_cases,
    shard_cases,
    spread_cases,
)

import ccp_fast.functional as F
from ccp_fast.ops import similarity_loss

ROOT = Path(__file__).resolve().parents[1]


def test_losses_are_within_bounds() -> None:
    assert [problem for case in loss_cases() for problem in case.problems("cpu")] == []


def test_shards_and_spreads_are_within_bounds() -> None:
    cases = [*shard_cases(), *spread_cases()]
    assert {case.loss for case in cases if isinstance(case, ShardCase)} == set(small_cases.LOSSES)
    assert [problem for case in cases for problem in case.problems("cpu")] == []


def test_a_shard_that_counts_wrongly_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [
        ShardCase(loss, kind, small_cases.DTYPES[0], (70, 29, 3, 33), "unit", "sum")
        for loss in ("triplet", "multi_similarity")
        for kind in ("proxies", "proxies as rows")
    ]
    right = small_cases.shard_ops.backward

    def shifted(grad: torch.Tensor, shard: Any, *rest: Any) -> Any:
        return right(grad, shard._replace(labels=shard.labels + 1), *rest)

    monkeypatch.setattr(small_cases.shard_ops, "backward", shifted)
    assert all(case.problems("cpu") for case in cases)


def test_choices_and_projections_are_equal() -> None:
    cases = [*selection_cases(), *neighbor_cases(), *projection_cases()]
    assert [problem for case in cases for problem in case.problems("cpu")] == []


def test_cases_for_hopper_can_take_its_path() -> None:
    """Two warpgroups of rows, two tiles, rows on 16-byte boundaries; two losses stand for all here."""
    cases = hopper_cases()
    assert {case.loss for case in cases} == set(small_cases.LOSSES)
    assert all(case.shape[-1] % 8 == 0 and case.dtypes[0].itemsize == 2 for case in cases)
    some = [case for case in cases if case.loss in ("multi_similarity", "soft_triple")]
    assert [problem for case in some for problem in case.problems("cpu")] == []


def test_every_registered_loss_has_cases() -> None:
    # A part of lifted_structure within the batch: test_gpu.test_lifted_pairs.
    assert set(similarity_loss._REFERENCE) - set(small_cases.LOSSES) == {"negative_lse"}
    cases = loss_cases()
    assert {(case.loss, case.kind) for case in cases} == {
        (loss, kind) for loss in small_cases.LOSSES for kind in small_cases.KINDS
    }
    assert {case.shape for case in cases} == set(small_cases.SHAPES)
    assert len({str(case) for case in cases}) == len(cases)


@pytest.mark.parametrize(
    ("loss", "change"),
    [
        ("contrastive_l2", {"neg_margin": 1.401}),
        ("contrastive_l2", {"pos_margin": 1.301}),
        ("multi_similarity", {"beta": 50.05}),
        ("triplet", {"margin": 0.201}),
    ],
)
def test_a_slightly_wrong_loss_is_a_problem(
    loss: str, change: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = LossCase(loss, "proxies", (torch.float32, torch.float32), (70, 29, 3, 33), "unit", "mean")
    name = small_cases.LOSSES[loss][0]
    right = getattr(F, name)
    assert case.problems("cpu") == []
    monkeypatch.setattr(F, name, lambda *pairs, **options: right(*pairs, **{**options, **change}))
    assert "off from float64 by" in case.problems("cpu")[0]


def test_nan_and_other_bits_are_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    case = LossCase("proxy_nca", "labelled", (torch.float32, torch.float32), (13, 7, 3, 5), "unit", "none")
    nan = F.proxy_nca
    monkeypatch.setattr(F, "proxy_nca", lambda *pairs, **options: nan(*pairs, **options) * torch.nan)
    assert case.problems("cpu")

    calls = iter(range(100))
    pick, project = F.farthest_points, F.projection_grad_

    def other_pick(points: Any, k: int, **options: Any) -> F.FarthestPoints:
        found = pick(points, k, **options)
        return found._replace(indices=found.indices.flip(1)) if next(calls) % 2 else found

    def other_bit(params: Any, previous: Any, lam: float, grads: Any) -> torch.Tensor:
        return project(params, previous, lam if next(calls) % 2 else lam * (1 + 1e-6), grads)

    monkeypatch.setattr(F, "farthest_points", other_pick)
    selection = SelectionCase("tiny", (5, 7), (), 3, 4, torch.float32, None, "repeat")
    assert "indices differ from the CPU's in segments [0, 1]" in selection.problems("cpu")[0]
    search = F.nearest_references

    def other_neighbor(*arguments: Any) -> F.NearestReferences:
        found = search(*arguments)
        return found._replace(indices=found.indices.flip(0)) if next(calls) % 2 else found

    monkeypatch.setattr(F, "nearest_references", other_neighbor)
    neighbors = NeighborCase(2, (4, 70, 5), (torch.float32, torch.float32))
    assert "indices differ from the CPU's of anchors [0, 1, 2, 3]" in neighbors.problems("cpu")[0]
    monkeypatch.setattr(F, "projection_grad_", other_bit)
    assert ProjectionCase("odd", (1023, 4097), (torch.float32,)).problems("cpu")


def test_inputs_are_clear_of_margins() -> None:
    case = LossCase(
        "contrastive_l2", "proxies", (torch.float32, torch.float32), (70, 29, 3, 33), "unit", "sum"
    )
    anchors, at_margin = (
        torch.eye(2),
        torch.tensor([[[1.0, 0.0]], [[0.02, 0.9996**0.5]]]),
    )  # √(2 − 2·0.02) = 1.4
    assert not case._is_clear(small_cases.Pairs(anchors, at_margin, torch.tensor([0, 0]), None))
    assert case._is_clear(case.pairs())


def test_the_program_for_sanitizers_runs_on_the_cpu() -> None:
    program = ROOT / "benchmarks" / "gpu_small_cases.py"
    command = [sys.executable, str(program), "--device", "cpu", "--only", "many"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "2 of 2 cases (100 %) on cpu, 1 of 1 losses and operators, 0 problems\n"


@pytest.mark.parametrize(
    ("options", "begun"),
    [
        (("--seconds", "0"), "0 of 2 cases (0 %) on cpu, 0 of 1"),
        (("--at-least", "101"), "2 of 2 cases (100 %)"),
    ],
)
def test_too_few_cases_fail(
    options: tuple[str, ...],
    begun: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_small_cases import main

    monkeypatch.setattr(sys, "argv", ["gpu_small_cases.py", "--device", "cpu", "--only", "many", *options])
    assert main() == 1
    shown = capsys.readouterr().out
    assert shown.startswith(begun)
    assert "TOO FEW: expected all of these and" in shown


def test_one_of_each_operator_and_loss_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu_small_cases import mixed, one_of_each

    named = [(type(case).__name__, case) for case in small_cases.all_cases()]
    first, others = one_of_each([("hopper", case) for case in hopper_cases()] + named)
    assert {case.loss for case in first if isinstance(case, ShardCase)} == set(small_cases.LOSSES)
    # Of three types in one process, of two in shards, of two on the path for Hopper.
    assert len([case for case in first if isinstance(case, LossCase)]) == 7 * len(small_cases.LOSSES)
    assert {case.k for case in first if isinstance(case, NeighborCase)} == {1, 4, 90, 1000, 2000}
    assert {type(case) for case in first} == {type(case) for _, case in named}
    everything = [*first, *mixed(others)]
    assert sorted(map(str, everything)) == sorted(map(str, [*hopper_cases(), *small_cases.all_cases()]))
