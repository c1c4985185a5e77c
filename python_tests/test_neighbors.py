"""The streamed nearest references: against the dense reference, among ties, and at their edges."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import one_thread  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_inputs import integers, normal
from ranked import assert_ranked
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast import reference
from ccp_fast.functional import NearestReferences

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
NORMALIZE = [None, "unit", "ball"]
OP = torch.ops.ccp_fast.nearest_references.default


def assert_same(ours: NearestReferences, theirs: NearestReferences) -> None:
    assert torch.equal(ours.indices, theirs.indices)
    assert ours.distances.dtype == theirs.distances.dtype
    # torch's own square root is not always the nearest float
    torch.testing.assert_close(ours.distances, theirs.distances, rtol=3e-7, atol=0)


# Against the reference --------------------------------------------------------------------------------------


@settings(max_examples=150)
@given(
    m=st.integers(0, 150),
    n=st.integers(0, 150),
    dim=st.integers(0, 35),
    k=st.integers(1, 9) | st.integers(1, 200),
    within=st.booleans(),
    dtypes=st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS)),
    limit=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_equals_reference_among_ties(m, n, dim, k, within, dtypes, limit, seed) -> None:
    """Distances of small integers are exact, so that every tie is a true one."""
    anchors = integers(m, dim, seed=seed, limit=limit).to(dtypes[0])
    references = None if within else integers(n, dim, seed=seed + 1, limit=limit).to(dtypes[1])
    assert_same(
        F.nearest_references(anchors, references, k), reference.nearest_references(anchors, references, k)
    )


@pytest.mark.parametrize(("m", "n", "k"), [(3, 5000, 7), (1100, 900, 40), (600, 70, 70), (9000, 10, 3)])
def test_equals_reference_over_groups_and_slices(m: int, n: int, k: int) -> None:
    """More anchors than a group has; few anchors, whose references are shared out; most of them equal."""
    anchors, references = integers(m, 3, seed=0), integers(n, 3, seed=1)
    assert_same(
        F.nearest_references(anchors, references, k), reference.nearest_references(anchors, references, k)
    )


def test_ties_where_lists_of_slices_are_put_together() -> None:
    """What a slice has selected is out of order: of equal distances a higher index may come before a lower one."""
    for seed in range(30):
        anchors, references = (integers(n, 6, seed=2 * seed + i, limit=1) for i, n in enumerate((50, 85)))
        assert_same(
            F.nearest_references(anchors, references, 5), reference.nearest_references(anchors, references, 5)
        )


@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(70, 200, 1), (33, 150, 8), (65, 130, 45), (20, 90, 300)])
def test_ranks_as_float64_does(
    normalize: str | None, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    m, n, dim = shape
    anchors, references = ((1.2 * dim**-0.5 * normal(x, dim, seed=x)).to(dtype) for x in (m, n))
    assert_ranked(
        F.nearest_references(anchors, references, 9, normalize=normalize), anchors, references, normalize
    )


def test_pairs_much_closer_than_their_length() -> None:
    """‖a‖² + ‖r‖² − 2a·r has no correct digit here."""
    anchors = 1000.0 + normal(50, 40)
    references = torch.cat([anchors + 1e-3 * normal(50, 40, seed=1), anchors + 2e-3 * normal(50, 40, seed=2)])
    found = F.nearest_references(anchors, references, 2)
    exact = (anchors.double()[:, None] - references.double()[found.indices]).norm(dim=2)
    assert found.indices.tolist() == [[i, 50 + i] for i in range(50)]
    torch.testing.assert_close(found.distances.double(), exact, rtol=1e-6, atol=0)


def test_every_number_of_threads_gives_the_same_bits() -> None:
    anchors, references = normal(1500, 24), normal(2000, 24, seed=1)
    references[100::7] = references[3]
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(
            [F.nearest_references(anchors[:m], references, 30, normalize="ball") for m in (9, 1500)]
        )
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert torch.equal(a.indices, b.indices)
            assert torch.equal(a.distances, b.distances)
    assert torch.equal(results[0][0].indices, results[0][1].indices[:9])  # nor does the cut into tiles matter


def test_thousands_of_neighbours() -> None:
    anchors, references = normal(5, 6), normal(3000, 6, seed=1)
    for k in (1000, 2999, 3000):
        found = F.nearest_references(anchors, references, k)
        assert_ranked(found, anchors, references, None)
    assert torch.equal(found.indices.sort(dim=1).values, torch.arange(3000).expand(5, -1))


# What the arguments mean ------------------------------------------------------------------------------------


def test_the_nearest_proxy_and_its_class() -> None:
    anchors, proxies = normal(40, 12), normal(9, 4, 12, seed=1)
    found = F.nearest_reference(anchors, proxies, normalize="unit")
    assert found.indices.shape == found.distances.shape == (40,)
    assert_same(found, F.nearest_reference(anchors, proxies.flatten(0, 1), normalize="unit"))
    similarity = torch.nn.functional.cosine_similarity(anchors[:, None, None], proxies, dim=-1)
    assert torch.equal(found.indices // 4, similarity.amax(2).argmax(1))
    assert_same(
        found,
        reference.nearest_reference(anchors, proxies, normalize="unit")._replace(distances=found.distances),
    )


def test_oneself_is_left_out_by_index() -> None:
    """A copy elsewhere stays, and is the nearest."""
    points = normal(90, 8)
    points[70] = points[3]
    found = F.nearest_references(points, None, 89)
    assert (found.indices[3, 0], found.indices[70, 0], found.distances[70, 0]) == (70, 3, 0)
    for i, row in enumerate(found.indices.tolist()):
        assert sorted([*row, i]) == list(range(90))


def test_fewer_references_than_asked_for() -> None:
    points = torch.tensor([[0.0], [3.0], [1.0]])
    found = F.nearest_references(points, None, 4)
    assert found.indices.tolist() == [[2, 1, -1, -1], [2, 0, -1, -1], [0, 1, -1, -1]]
    assert found.distances.tolist() == [
        [1, 3, *[math.inf] * 2],
        [2, 3, *[math.inf] * 2],
        [1, 2, *[math.inf] * 2],
    ]
    assert F.nearest_reference(points, points[:0]).indices.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (0, 0)])
def test_nothing_in_it(shape: tuple[int, int]) -> None:
    empty, some = torch.zeros(shape), torch.zeros(5, shape[1])
    for anchors, references in ((empty, some), (some, empty), (empty, None)):
        assert_same(
            F.nearest_references(anchors, references, 2), reference.nearest_references(anchors, references, 2)
        )


def test_layouts_and_no_gradient() -> None:
    anchors = normal(26, 5).repeat(1, 2)[:, ::2].requires_grad_()
    proxies = normal(7, 1, 5).expand(7, 3, 5).requires_grad_()
    found = F.nearest_references(anchors, proxies, 4)
    assert_same(found, F.nearest_references(anchors.detach().clone(), proxies.detach().clone(), 4))
    assert (found.indices % 3).tolist() == [[0, 1, 2, 0]] * 26  # equal proxies of a class in their order
    assert not found.distances.requires_grad
    assert not OP(anchors, proxies, 2, "none", False, False)[1].requires_grad


@pytest.mark.parametrize("scale", [1e-10, 1e18, 1e30])
def test_unit_vectors_of_any_length(scale: float) -> None:
    anchors, references = normal(20, 9), normal(50, 9, seed=1)
    found = F.nearest_references(anchors * scale, references * scale, 3, normalize="unit")
    assert torch.equal(found.indices, F.nearest_references(anchors, references, 3, normalize="unit").indices)


# Errors -----------------------------------------------------------------------------------------------------

X = torch.zeros(6, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k: expected an integer of at least 1, got 0"),
        ({"k": 2.5}, "k: expected an integer of at least 1, got 2.5"),
        ({"k": True}, "k: expected an integer of at least 1, got True"),
        ({"normalize": "l2"}, 'normalize: expected "ball", "unit" or None, got \'l2\''),
        (
            {"anchors": X.long()},
            r"anchors: expected floating point of shape \[M, D\], got int64 of shape \[6, 2\]",
        ),
        ({"anchors": X[0]}, r"anchors: .* got float32 of shape \[2\]"),
        ({"anchors": [1.0]}, r"anchors: expected floating point of shape \[M, D\], got list"),
        (
            {"references": X[:, :1]},
            r"references: expected last dimension 2, the anchors', got shape \[6, 1\]",
        ),
        ({"references": X[0]}, r"references: expected floating point of shape \[N, D\] or \[C, K, D\]"),
        ({"references": X.to("meta")}, "references: expected on cpu, the anchors' device, got meta"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        F.nearest_references(**{"anchors": X, "references": X, **arguments})


def test_the_nearest_of_nothing() -> None:
    with pytest.raises(ValueError, match="references: expected a tensor, got None"):
        F.nearest_reference(X, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e19])
def test_vectors_without_a_distance(value: float) -> None:
    good, bad = normal(700, 3), normal(700, 3, seed=1)
    bad[[612, 650], 1] = value
    for arguments, name in (((good, bad), "references"), ((bad, good), "anchors"), ((bad, None), "anchors")):
        with pytest.raises(RuntimeError, match=f"{name}: expected numbers whose squares .* in row 612$"):
            F.nearest_references(*arguments, 2)
    if value == 1e19:
        assert F.nearest_references(good, bad, 2, normalize="unit").distances.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, X, 0, "none", False, False), "k: expected at least 1"),
        ((X[0], X, 1, "none", False, False), r"anchors: expected shape \[M, D\], got \[2\]"),
        (
            (X, X[0], 1, "none", False, False),
            r"references: expected shape \[N, D\] or \[C, K, D\], got \[2\]",
        ),
        ((X, X[:, :1], 1, "none", False, False), "references: expected last dimension 2"),
        ((X, X[:3], 1, "none", True, False), "references: expected the anchors themselves"),
        ((X, X, 1, "l2", False, False), "normalize: expected none, unit or ball, got l2"),
        ((X, X.long(), 1, "none", False, False), "references: expected float32"),
    ],
)
def test_the_operator_checks_its_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        OP(*arguments)


# As PyTorch sees it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype: torch.dtype) -> None:
    anchors, proxies = normal(11, 5).to(dtype).requires_grad_(), normal(4, 3, 5, seed=1).requires_grad_()
    torch.library.opcheck(OP, (anchors, proxies, 2, "unit", False, False))
    torch.library.opcheck(OP, (anchors, anchors, 20, "none", True, False))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic: bool) -> None:
    @torch.compile(fullgraph=True, dynamic=dynamic, backend="aot_eager")
    def classes(x: Tensor, proxies: Tensor) -> Tensor:
        return F.nearest_reference(x * 2, proxies, normalize="unit").indices // proxies.shape[1]

    for m in (4, 9):
        anchors, proxies = normal(m, 6), normal(5, 3, 6, seed=1)
        assert torch.equal(
            classes(anchors, proxies), F.nearest_reference(anchors, proxies, normalize="unit").indices // 3
        )
