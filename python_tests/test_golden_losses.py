"""Value and gradients of the losses against the published implementations' own output."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
from golden import Case, load, names
from golden.compare import Array, assert_golden, assert_within_budget
from golden.coverage import DEFECTIVE, EXCLUDED, FAMILIES, LOSSES, cases_of, matching
from golden.recipes import has_columns, recipe, sharpness
from helpers import one_thread  # noqa: F401

from ccp_fast import functional, reference

BACKENDS = {"reference": reference, "fused": functional}

# The margin is 1, and a unit vector is at distance 1 of the zero vector: rounding decides whether the pair
# counts, so that only the arithmetic of the published code gives its value.
KNIFE_EDGE = {"ccp-dml/hard__contrastive_zero_l2n_batch_knifeedge_m1.0", "pml/hard_ContrastiveLoss__zero"}
# The published code adds 1e-16 to probabilities of about 4e-9.
LOOSER = {"ccp-dml/hard__pnca_lambda0.03_opposed": 2e-6}


class Outcome(NamedTuple):
    """The loss and its gradients, of the embeddings and of the proxies (None without proxies)."""

    loss: Array
    grad_emb: Array
    grad_proxies: Array | None


def run(api: ModuleType, case: Case, dtype: torch.dtype) -> Outcome:
    """The case's loss computed in `dtype`, from inputs rounded to float32 where that is asked."""
    emb = torch.from_numpy(case["emb"]).to(dtype).requires_grad_()
    key = proxies_key(case)
    proxies = torch.from_numpy(case[key]).to(dtype).requires_grad_() if key else None
    loss = recipe(case)(api, case, emb, proxies, torch.from_numpy(case["labels"]).long())
    loss.backward()
    return Outcome(
        loss.detach().double().numpy(), gradient(emb), None if proxies is None else gradient(proxies)
    )


def gradient(leaf: torch.Tensor) -> Array:
    return np.zeros(leaf.shape) if leaf.grad is None else leaf.grad.double().numpy()


def proxies_key(case: Case) -> str | None:
    return next((key for key in ("proxies", "weight") if key in case), None)


def rounded(case: Case) -> Case:
    """The case with inputs that float32 can hold."""
    inputs = {"emb", "proxies", "weight"} & case.arrays.keys()
    return Case(case.name, case.meta, case.arrays | {k: case[k].astype(np.float32) for k in inputs})


def unit(case: Case) -> bool:
    return case.flags.get("normalize_embeddings", True) and not case.flags.get("lipschitz_cont", False)


@pytest.mark.parametrize(
    ("name", "backend"),
    [(n, b) for n in cases_of(LOSSES) for b in BACKENDS if b == "reference" or n not in KNIFE_EDGE],
)
def test_float64_reproduces_the_published_output(name: str, backend: str) -> None:
    case = load(name)
    ours = run(BACKENDS[backend], case, torch.float64)
    loss = float(ours.loss)
    assert_golden("loss", ours.loss, case.best("loss"), loss, LOOSER.get(name))
    for key, vectors, grad in (
        ("grad_emb", "emb", ours.grad_emb),
        (f"grad_{proxies_key(case)}", proxies_key(case), ours.grad_proxies),
    ):
        if vectors is None or grad is None:
            continue
        golden = case.best(key)
        columns = vectors == "weight" and has_columns(case)
        zero = ~case[vectors].any(axis=0 if columns else 1)
        if (
            unit(case) and zero.any()
        ):  # v/‖v‖ has no gradient at 0: the sources give 1e6 to 1e12 times what flows in
            golden, grad = (x.T if columns else x for x in (golden, grad))
            assert not grad[zero].any()
            golden, grad = golden[~zero], grad[~zero]
        assert_golden(key, grad, golden, loss, LOOSER.get(name))


@pytest.mark.parametrize("name", [n for n in cases_of(LOSSES) if n not in KNIFE_EDGE])
def test_float32_keeps_within_twice_the_error_of_eager_float32(name: str) -> None:
    assert_float32(rounded(load(name)))


@pytest.mark.parametrize("name", DEFECTIVE)
def test_finite_where_the_published_output_is_not(name: str) -> None:
    case = rounded(load(name))
    truth = run(reference, case, torch.float64)
    assert all(np.isfinite(x).all() for x in truth if x is not None)
    assert truth.grad_emb.any()
    assert_float32(case)


def assert_float32(case: Case) -> None:
    truth, eager = (run(reference, case, dtype) for dtype in (torch.float64, torch.float32))
    ours = run(functional, case, torch.float32)
    for key, mine, plain, exact in zip(Outcome._fields, ours, eager, truth, strict=True):
        if mine is not None and plain is not None and exact is not None:
            assert_within_budget(key, mine, plain, exact, float(truth.loss), sharpness(case))


def test_every_case_has_one_place() -> None:
    assert len(names()) == 528
    assert {n: matching(FAMILIES, n) for n in names() if len(matching(FAMILIES, n)) != 1} == {}


@pytest.mark.parametrize("table", [FAMILIES, EXCLUDED, DEFECTIVE], ids=["families", "excluded", "defective"])
def test_every_pattern_has_a_case_and_a_reason(table: dict[str, str]) -> None:
    assert [pattern for pattern, reason in table.items() if not names(pattern) or not reason] == []


def test_exclusions_are_counted() -> None:
    """A pattern that grows by accident would silently take cases out of the tests."""
    tested_here = [n for n in names() if FAMILIES[matching(FAMILIES, n)[0]].endswith(".py")]
    excluded = [n for n in tested_here if matching(EXCLUDED, n)]
    assert (len(tested_here), len(excluded), len(DEFECTIVE)) == (528, 75, 11)
