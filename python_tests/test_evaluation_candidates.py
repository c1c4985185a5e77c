"""Ranking a few candidates from float32 products gives the bits of ranking all references exactly."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from helpers import one_thread  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_inputs import normal
from torch import Tensor

import ccp_fast
from ccp_fast.evaluation import _candidates, _nearest, nearest, retrieval
from ccp_fast.evaluation._candidates import BACKENDS, Candidates
from ccp_fast.evaluation._nearest import prepare

NORMALIZE = ["unit", "ball", None]
EITHER = [
    "ccp_fast",
    pytest.param(
        "faiss",
        marks=pytest.mark.skipif(find_spec("faiss") is None, reason="pip install 'ccp-fast[faiss]'"),
    ),
]


class Counts:
    """How many queries were ranked among candidates, and how many among all references."""

    def __init__(self) -> None:
        self.candidates = self.all = 0


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    seen = Counts()
    rank, among = _nearest._rank, _nearest._rank_among

    def ranking(query: Any, reference: Any, rows: Tensor, *rest: Any) -> Any:
        seen.all += len(rows)
        return rank(query, reference, rows, *rest)

    def ranking_among(query: Any, reference: Any, rows: Tensor, *rest: Any) -> Any:
        seen.candidates += len(rows)
        return among(query, reference, rows, *rest)

    monkeypatch.setattr(_nearest, "_rank", ranking)
    monkeypatch.setattr(_nearest, "_rank_among", ranking_among)
    return seen


def assert_exact(
    query: Tensor, k: int, reference: Tensor | None, normalize: Any, backend: Any = "ccp_fast"
) -> None:
    """Tiles of a size given are ranked exactly, all of them."""
    found = nearest(query, k, reference, normalize=normalize, backend=backend)
    exact = nearest(query, k, reference, normalize=normalize, block_size=(300, 700))
    assert torch.equal(found.indices, exact.indices)
    assert torch.equal(found.distances, exact.distances)


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("within", [True, False])
@pytest.mark.parametrize("backend", EITHER)
def test_same_bits(normalize: Any, dtype: torch.dtype, within: bool, backend: str, counts: Counts) -> None:
    query, reference = ((0.3 * normal(n, 24, seed=n)).to(dtype) for n in (900, 1300))
    if within:
        query, reference = reference, None
    assert_exact(query, 7, reference, normalize, backend)
    assert counts.candidates == len(query)
    assert counts.all < len(query) * 1.05  # those of the exact run, and next to none besides


@pytest.mark.parametrize("backend", EITHER)
@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(400, 900),
    dim=st.sampled_from([1, 2, 5, 40]),
    k=st.integers(1, 12),
    copies=st.integers(1, 60),
    noise=st.sampled_from([0.0, 1e-9, 1e-7, 1e-4, 1.0]),
    scale=st.sampled_from([1e-22, 1e-12, 1e-4, 1.0, 1e9, 1e18]),
    normalize=st.sampled_from(NORMALIZE),
    seed=st.integers(0, 2**31),
)
def test_same_bits_among_copies_and_near_copies(
    backend, n, dim, k, copies, noise, scale, normalize, seed
) -> None:
    """Ties, neighbours that float32 cannot tell apart, rows that float32 has no squares for."""
    x = normal(-(-n // copies), dim, seed=seed).repeat(copies, 1)[:n] + noise * normal(n, dim, seed=seed + 1)
    assert_exact(x * scale, k, None, normalize, backend)
    assert_exact(x[:50] * scale, k, x * scale, normalize, backend)


@pytest.mark.parametrize("backend", EITHER)
def test_neighbours_that_float32_cannot_tell_apart(
    backend: str, counts: Counts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty references on a sphere around each query: no candidate is certain, and taken for that they are wrong."""
    query, directions = normal(20, 64), normal(20, 60, 64, seed=1)
    around = query[:, None] + 4 * directions / directions.norm(dim=2, keepdim=True)
    reference = around.flatten(0, 1)
    assert_exact(query, 5, reference, None, backend)
    assert (counts.candidates, counts.all) == (20, 40)
    monkeypatch.setattr(_candidates, "_error", lambda values, size, distance: -torch.ones_like(size))
    with pytest.raises(AssertionError):
        assert_exact(query, 5, reference, None, backend)


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("dim", [1, 3, 64, 700])
@pytest.mark.parametrize("spread", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("backend", EITHER)
def test_what_is_left_out_is_above_the_bound(normalize: Any, dim: int, spread: float, backend: Any) -> None:
    """And rounding is within what is allowed for, of every pair."""
    centre = spread * normal(1, dim, seed=3)
    q, r = prepare(centre + normal(40, dim), centre + normal(500, dim, seed=1), normalize)
    rows = torch.arange(40)
    squares = _nearest._rank_among(q, r, rows, torch.arange(500).expand(40, 500), 500, False)
    exact = torch.empty(40, 500, dtype=torch.float64).scatter_(1, squares.indices, squares.squares)
    for count in (1, 20):
        indices, bound = BACKENDS[backend](q, r).find(rows, count)
        left_out = exact.scatter(1, indices, torch.inf).amin(1)
        assert (left_out > bound).all()
        kept = exact.gather(1, indices).amax(1)
        size = q.square.sqrt() + r.square.max().sqrt()
        assert ((kept - bound) <= 2.1 * _candidates._error(q.values, size, size)).all()


def test_a_bound_for_close_rows_is_tighter() -> None:
    """As early in training, when a network maps all to nearly the same: candidates are certain nevertheless."""
    for spread, by in ((0.0, 1.0), (10.0, 5.0), (100.0, 50.0)):
        q, r = prepare(spread + normal(40, 64), spread + normal(500, 64, seed=1), "unit")
        _, bound = Candidates(q, r).find(torch.arange(40), 5)
        squares = _nearest._rank_among(
            q, r, torch.arange(40), torch.arange(500).expand(40, 500), 5, False
        ).squares
        missing = squares[:, -1] - bound  # what the bound costs
        allowed = 1.2 * _candidates._error(q.values, torch.tensor(2.0), torch.tensor(2.0)) / by
        assert (missing < allowed).all()


def test_no_candidates_where_they_are_of_no_use(counts: Counts) -> None:
    x = normal(1, 8).repeat(2000, 1)
    nearest(x, 5)
    assert counts.candidates == _nearest._TRIAL
    assert counts.all == 2000


@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e31])
def test_rows_that_float32_cannot_normalise_are_ranked_exactly(scale: float, counts: Counts) -> None:
    x = normal(400, 6)
    x[7] *= scale
    assert_exact(x, 3, None, "unit")
    assert counts.candidates == 0


@pytest.mark.parametrize("backend", EITHER)
def test_metrics_do_not_depend_on_the_backend(backend: Any) -> None:
    """Of a whole set and of queries in a gallery; one class asks for so many neighbours that all are ranked."""
    x = 0.3 * normal(1500, 16, seed=4)
    labels = torch.cat([torch.arange(1200) // 4, torch.full((300,), 999)])
    names = ("precision_at_1", "r_precision", "map_at_r", "recall_at_k")
    found = retrieval(x, labels, metrics=names, backend=backend)
    assert found == retrieval(x, labels, metrics=names, block_size=(200, 400))
    gallery = (x[::2], labels[::2], x[1::2], labels[1::2])
    found = retrieval(*gallery, metrics=names, backend=backend)
    assert found == retrieval(*gallery, metrics=names, block_size=(200, 400))


def test_backends_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(300, 4)
    for options in ({}, {"block_size": (100, 100)}):
        with pytest.raises(ValueError, match='backend: expected "ccp_fast" or "faiss", got \'annoy\''):
            nearest(x, 2, backend="annoy", **options)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ModuleNotFoundError, match='backend: "faiss" is not installed'):
        nearest(x, 2, backend="faiss")


def test_many_neighbours_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query with more candidates than a tile holds is ranked alone."""
    gathered = []
    among = _nearest._rank_among

    def counting(query: Any, reference: Any, rows: Tensor, columns: Tensor, *rest: Any) -> Any:
        gathered.append(columns.shape)
        return among(query, reference, rows, columns, *rest)

    monkeypatch.setattr(_nearest, "_rank_among", counting)
    monkeypatch.setitem(_nearest._TILE, "cpu", 1 << 12)
    assert_exact(normal(3, 16), 100, normal(2400, 16, seed=1), "unit")
    assert gathered == 3 * [(1, _candidates.count(100, False))]


def test_devices_without_the_operator() -> None:
    assert Candidates._has_kernel(torch.device("cpu"))
    assert not Candidates._has_kernel(torch.device("xpu"))
    assert Candidates._has_kernel(torch.device("cuda")) == ccp_fast.info()["cuda_built"]


def test_double_and_many_neighbours_are_ranked_exactly(counts: Counts) -> None:
    x = normal(400, 6)
    nearest(x.double(), 3)
    nearest(x, 30)
    assert counts.candidates == 0
    assert counts.all == 800


def test_a_large_matrix_that_keeps_no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = normal(800, 16), torch.arange(800) // 5
    expected = retrieval(x, labels, metrics=["map_at_r"])
    monkeypatch.setattr("ccp_fast.evaluation._fixed_point._KEEP", 0)
    assert retrieval(x, labels, metrics=["map_at_r"]) == expected
    assert_exact(x, 5, None, "ball")
