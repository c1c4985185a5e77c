"""Greedy k-center against the published greedyKCenter: picks, and covering radii after each."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from golden import Case, load
from golden.compare import Array
from golden.coverage import SELECTION, cases_of
from helpers import one_thread  # noqa: F401

from ccp_fast import functional, reference
from ccp_fast.reference import FarthestPoints

BACKENDS = {"reference": reference, "fused": functional}
DTYPES = [torch.float64, torch.float32]
# Arithmetic is exact here, so every tie is a true one and must go to the lowest index.
EXACT_TIES = {f"ccp-dml/kcenter_{n}" for n in ("raw_axis_ties", "raw_axis_ties_init_e0", "norm_axis_ties")}


def select(case: Case, backend: str, dtype: torch.dtype) -> FarthestPoints:
    points, seeds = (torch.from_numpy(case[key]).to(dtype) for key in ("point_set", "initial_set"))
    normalize = "unit" if case.flags["normalized_embeddings"] else None
    return BACKENDS[backend].farthest_points(points, case.flags["K"], seeds=seeds, normalize=normalize)


def picks_within_class(case: Case, indices: torch.Tensor) -> Array:
    """[C, K] from rows of the flat points to positions in the pool."""
    return indices.numpy() - case.flags["b"] * np.arange(case.flags["C"])[:, None]


def agreement(case: Case, picks: Array) -> Array:
    """[C, K] up to where a class has picked the published points (a copy of a point is as good)."""
    published = case.best("selected").reshape(case.flags["K"], case.flags["C"], -1).swapaxes(0, 1)
    ours = case["point_set"][np.arange(case.flags["C"])[:, None], picks]
    return np.logical_and.accumulate((ours == published).all(axis=2), axis=1)


def decided(case: Case, dtype: torch.dtype) -> Array:
    """[C, K] whether more than rounding decides the pick.

    A squared distance δ between vectors of norm at most r carries an error of a few eps·(r·√δ + δ): the first
    term stems from normalising the vectors. Closer candidates than that are a matter of rounding, and so is
    what is picked once only copies of picked points are left.
    """
    gap = case.best("top1_top2_gap")
    farthest = np.abs(case.best("mindist_trace").max(axis=2).T)
    size = 1.0 if case.flags["normalized_embeddings"] else np.linalg.norm(case["point_set"], axis=-1).max()
    noise = 8 * torch.finfo(dtype).eps * (size * np.sqrt(farthest) + farthest)
    return (gap > noise) & (farthest > noise)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", cases_of(SELECTION))
def test_picks_and_radii(name: str, backend: str, dtype: torch.dtype) -> None:
    case = load(name)
    ours = select(case, backend, dtype)
    picks = picks_within_class(case, ours.indices)
    agreed = agreement(case, picks)
    for c, count in enumerate(agreed.sum(axis=1)):
        assert count == len(agreed[c]) or not decided(case, dtype)[c, count]
    if name in EXACT_TIES:
        np.testing.assert_array_equal(picks, case["indices"])

    # the radius after pick i is what the published code finds before pick i + 1
    published = np.sqrt(case.best("mindist_trace").max(axis=2).clip(min=0).T[:, 1:])
    compare = agreed[:, :-1]
    np.testing.assert_allclose(ours.radii.numpy()[:, :-1][compare], published[compare], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", cases_of(SELECTION))
def test_no_point_twice_while_another_is_left(name: str, backend: str) -> None:
    """Where the published code picks index 0 again and again, ours takes what is left and then cycles."""
    case = load(name)
    pool = case.flags["b"]
    picks = picks_within_class(case, select(case, backend, torch.float32).indices)
    assert ((picks >= 0) & (picks < pool)).all()
    for row in picks:
        assert len(set(row[:pool])) == min(len(row), pool)
        assert (row[pool:] == row[: max(len(row) - pool, 0)]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_enough_picks_are_compared(dtype: torch.dtype) -> None:
    """All but the 36 picks that come after the last distinct point of a class."""
    total = agreed = 0
    for name in cases_of(SELECTION):
        case = load(name)
        picks = picks_within_class(case, select(case, "reference", dtype).indices)
        total, agreed = total + picks.size, agreed + int(agreement(case, picks).sum())
    assert (total, agreed) == (620, 584)
