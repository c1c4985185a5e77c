"""The CUDA kernels of the nearest references, emulated: the CPU's result among exact ties, float64's elsewhere."""

from __future__ import annotations

import math

import emulator
import pytest
import torch
from emulated_neighbors import emulate
from helpers import one_thread  # noqa: F401
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from ragged_inputs import integers, normal
from ranked import assert_ranked
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast.functional import NearestReferences

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
KS = (1, 5, 70)


def assert_same(ours: NearestReferences, theirs: NearestReferences) -> None:
    assert torch.equal(ours.indices, theirs.indices)
    assert torch.equal(ours.distances, theirs.distances)


# Against the CPU --------------------------------------------------------------------------------------------


@examples(max_examples=60)
@given(
    m=st.integers(0, 300),
    n=st.integers(0, 300),
    dim=st.integers(0, 40),
    k=st.just(1) | st.integers(2, 9) | st.integers(1, 320),
    within=st.booleans(),
    dtypes=st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS)),
    limit=st.integers(0, 3),
    processors=st.integers(1, 9),
    seed=st.integers(0, 2**31),
)
def test_equals_cpu_among_ties(m, n, dim, k, within, dtypes, limit, processors, seed) -> None:
    """Distances of small integers are exact, in one tf32 product as well."""
    anchors = integers(m, dim, seed=seed, limit=limit).to(dtypes[0])
    references = None if within else integers(n, dim, seed=seed + 1, limit=limit).to(dtypes[1])
    found = emulate(anchors, references, k, precise=bool(seed % 2), multiprocessors=processors, seed=seed)
    assert_same(found, F.nearest_references(anchors, references, k))


@pytest.mark.parametrize(("k", "n"), [(1000, 4100), (1500, 3000)])
def test_thousands_of_neighbours(k: int, n: int) -> None:
    """Sorted in shared memory, and in global memory where there is no room for so many."""
    anchors, references = integers(5, 6, seed=0), integers(n, 6, seed=1)
    assert_same(emulate(anchors, references, k), F.nearest_references(anchors, references, k))


def test_references_that_come_ever_nearer() -> None:
    """No bound keeps any away: every list is filled up again and again."""
    anchors = torch.zeros(140, 1)
    references = torch.arange(900.0, 0, -1)[:, None]
    for k in KS:
        for processors in (1, 3):
            found = emulate(anchors, references, k, multiprocessors=processors)
            assert found.indices.tolist() == [list(range(899, 899 - k, -1))] * 140
            assert found.distances.tolist() == [[float(x + 1) for x in range(k)]] * 140


@pytest.mark.parametrize("normalize", [None, "unit", "ball"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("k", KS)
def test_ranks_as_float64_does(k: int, dtype: torch.dtype, normalize: str | None) -> None:
    for m, n, dim in ((37, 179, 45), (130, 90, 3)):
        anchors, references = ((1.2 * dim**-0.5 * normal(x, dim, seed=x)).to(dtype) for x in (m, n))
        found = emulate(anchors, references, k, normalize=normalize, precise=dtype == torch.float32)
        assert_ranked(found, anchors, references, normalize, roundings=8)


@pytest.mark.parametrize("dim", [1, 4, 32, 36, 129, 300, 513, 1030])
def test_any_number_of_components(dim: int) -> None:
    """Whole and broken chunks; anchors kept in shared memory and not."""
    anchors, references = dim**-0.5 * normal(20, dim), dim**-0.5 * normal(133, dim, seed=1)
    for k in KS:
        assert_ranked(emulate(anchors, references, k), anchors, references, None, roundings=8)


def test_tf32_is_coarser_and_three_products_are_not() -> None:
    anchors, references = 0.1 * normal(37, 128), 0.1 * normal(79, 128, seed=1)
    exact = torch.cdist(anchors.double(), references.double()).amin(1)
    precise, coarse = (
        float((emulate(anchors, references, 1, precise=x).distances[:, 0] - exact).abs().max())
        for x in (True, False)
    )
    assert precise < 1e-6
    assert 1e-5 < coarse < 2e-3


def test_pairs_much_closer_than_their_length() -> None:
    anchors = 1000.0 + normal(50, 40)
    references = torch.cat([anchors + 1e-3 * normal(50, 40, seed=1), anchors + 2e-3 * normal(50, 40, seed=2)])
    found = emulate(anchors, references, 2)
    exact = (anchors.double()[:, None] - references.double()[found.indices]).norm(dim=2)
    assert found.indices.tolist() == [[i, 50 + i] for i in range(50)]
    torch.testing.assert_close(found.distances.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("normalize", [None, "unit", "ball"])
def test_copies_are_at_distance_zero_and_tie(normalize: str | None) -> None:
    """Scaled alike, too, where a fused product would leave a distance of 1e-8."""
    anchors = normal(40, 33)
    references = torch.cat([normal(30, 33, seed=1), anchors, anchors, anchors])
    for k in (1, 3):
        found = emulate(anchors, references, k, normalize=normalize)
        assert found.indices.tolist() == [[30 + i + 40 * copy for copy in range(k)] for i in range(40)]
        assert not found.distances.any()


def test_unaligned_memory() -> None:
    memory = integers(1 + 40 * 32, seed=0)
    anchors = memory[1:].view(40, 32)
    assert anchors.data_ptr() % 16
    for k in KS:
        assert_same(emulate(anchors, None, k), F.nearest_references(anchors, None, k))


# Order ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", KS)
def test_the_order_of_threads_and_blocks_changes_no_bit(k: int) -> None:
    anchors, references = normal(150, 20), normal(400, 20, seed=1)
    references[50::3] = references[7]
    first, *others = (emulate(anchors, references, k, multiprocessors=2, seed=seed) for seed in range(5))
    for other in others:
        assert_same(other, first)
    for processors in (1, 7):  # nor does the cut into slices
        assert_same(emulate(anchors, references, k, multiprocessors=processors), first)


def test_every_barrier_is_needed() -> None:
    """Left out, each lets some order of the threads give another result."""
    points = integers(300, 40, seed=0)
    # Nothing comes near but the last references, and what is close takes its warp long.
    far = torch.cat([100.0 + torch.arange(280.0)[:, None].repeat(1, 40), points[:1].repeat(20, 1)])

    def results(seed: int) -> list[Tensor]:
        # More tiles than blocks, lists that fill up, and neighbours to sort.
        cases = ((points, None, 1), (points, None, 40), (points[:1].repeat(40, 1), far, 30))
        return [x for a, r, k in cases for x in emulate(a, r, k, multiprocessors=1, seed=seed)]

    right = results(0)

    def differs(seed: int) -> bool:
        return any(not torch.equal(x, y) for x, y in zip(right, results(seed), strict=True))

    assert not emulator.unneeded_barriers(differs)


# What has no distance ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", KS)
@pytest.mark.parametrize("normalize", [None, "unit", "ball"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_has_no_distance_is_never_picked(k: int, normalize: str | None, value: float) -> None:
    anchors, references = normal(30, 18), normal(100, 18, seed=1)
    good = [j for j in range(100) if j % 9]
    references[::9, 5] = value
    expected = F.nearest_references(anchors, references[good], k, normalize=normalize)
    found = emulate(anchors, references, k, normalize=normalize)
    assert torch.equal(found.indices, torch.tensor(good)[expected.indices])
    anchors[4] = value
    found = emulate(anchors, references, k, normalize=normalize)
    assert found.indices[4].tolist() == [-1] * k
    assert found.distances[4].tolist() == [math.inf] * k
    assert torch.equal(found.indices[5:], torch.tensor(good)[expected.indices[5:]])


@pytest.mark.parametrize("scale", [1e-20, 1e19, 1e30])
def test_unit_vectors_of_any_length(scale: float) -> None:
    anchors, references = normal(20, 40), normal(70, 40, seed=1)
    plain = emulate(anchors, references, 3, normalize="unit")
    found = emulate(anchors * scale, references * scale, 3, normalize="unit")
    if scale > 1e-12:
        assert torch.equal(found.indices, plain.indices)
    else:  # shorter vectors count as zero
        assert found.distances.tolist() == [[0, 0, 0]] * 20


@pytest.mark.slow
@pytest.mark.parametrize("k", KS)
def test_no_undefined_behaviour(k: int) -> None:
    """A process that shows any ends at once with UBSan's message."""
    anchors, references = integers(37, 45, seed=0), integers(179, 45, seed=1)
    assert_same(emulate(anchors, references, k, sanitize=True), F.nearest_references(anchors, references, k))
