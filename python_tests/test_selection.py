"""The fused k-center: against the reference, against its own arithmetic written out, and at its edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers import one_thread  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_inputs import integers, normal, offsets_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ccp_fast import reference
from ccp_fast.selection import FarthestPoints, farthest_points

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OP = torch.ops.ccp_fast.farthest_points.default


def assert_same(ours: FarthestPoints, theirs: FarthestPoints) -> None:
    assert torch.equal(ours.indices, theirs.indices)
    assert ours.radii.dtype == theirs.radii.dtype
    # torch's own square root is not always the nearest float
    torch.testing.assert_close(ours.radii, theirs.radii, rtol=3e-7, atol=0)


# Against the reference --------------------------------------------------------------------------------------

ragged = st.lists(st.integers(0, 9), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(
    sizes=ragged,
    seed_sizes=st.lists(st.integers(0, 5), min_size=5, max_size=5),
    seeded=st.booleans(),
    dim=st.integers(0, 35),
    k=st.integers(1, 7),
    limit=st.integers(0, 3),
    dtype=st.sampled_from(FLOATS),
    seed_dtype=st.sampled_from(FLOATS),
    short=st.sampled_from(["repeat", "pad"]),
    random_seed=st.integers(0, 2**31),
)
def test_equals_reference(
    sizes, seed_sizes, seeded, dim, k, limit, dtype, seed_dtype, short, random_seed
) -> None:
    points = integers(sum(sizes), dim, seed=random_seed, limit=limit).to(dtype)
    options = {"offsets": offsets_of(sizes), "short": short}
    if seeded:
        counts = seed_sizes[: len(sizes)]
        options["seeds"] = integers(sum(counts), dim, seed=random_seed + 1, limit=limit).to(seed_dtype)
        options["seed_offsets"] = offsets_of(counts)
    assert_same(farthest_points(points, k, **options), reference.farthest_points(points, k, **options))


@pytest.mark.parametrize("with_seeds", [False, True])
def test_equals_reference_on_thousands_of_segments(with_seeds: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = torch.randint(0, 10, (2500,), generator=generator).tolist()
    points = integers(sum(sizes), 3, seed=4)
    options = {"offsets": offsets_of(sizes)}
    if with_seeds:
        options["seeds"] = integers(len(sizes), 2, 3, seed=5)
    assert_same(farthest_points(points, 4, **options), reference.farthest_points(points, 4, **options))


def clusters(count: int, dim: int, seed: int) -> Tensor:
    """Tight clusters far apart: the triangle inequality then rules most points out. Small integers."""
    centres = integers(12, dim, seed=seed, limit=40)
    own = torch.randint(0, 12, (count,), generator=torch.Generator().manual_seed(seed + 1))
    return centres[own] + integers(count, dim, seed=seed + 2, limit=1)


@pytest.mark.parametrize("seeds", [0, 1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_large_segments_equal_reference(seeds: int, dtype: torch.dtype) -> None:
    """Above 2^17 elements: all threads on one segment, with pruning; a small segment in between."""
    sizes = [7000, 5, 9001]
    points = clusters(sum(sizes), 21, seed=1).to(dtype)
    options = {"offsets": offsets_of(sizes)}
    if seeds:
        options["seeds"] = clusters(3 * seeds, 21, seed=9).unflatten(0, (3, seeds)).to(dtype)
    assert_same(farthest_points(points, 20, **options), reference.farthest_points(points, 20, **options))


def test_copies_in_a_large_segment_are_picked_once_each() -> None:
    points = torch.zeros(9000, 20)
    points[[70, 8000]] = 1
    picks = farthest_points(points, 6, seeds=points[:1]).indices
    assert picks.tolist() == [[70, 0, 1, 2, 3, 4]]


def test_more_picks_than_points_in_a_large_segment() -> None:
    points = normal(129, 1024)
    for short in ("repeat", "pad"):
        result = farthest_points(points, 131, short=short)
        assert sorted(result.indices[0, :129].tolist()) == list(range(129))
        tail = result.indices[0, :2].tolist() if short == "repeat" else [-1, -1]
        assert result.indices[0, 129:].tolist() == tail
        assert result.radii[0, 128:].tolist() == [0, 0, 0]


# The arithmetic that csrc/kernels/cpu/farthest_points.h fixes for every device ------------------------------


def sum_of_squares(x: np.ndarray) -> np.ndarray:
    """Over the last axis, in 16 lanes and a tree, every operation rounded to the dtype of x."""
    lanes = np.zeros((*x.shape[:-1], 16), x.dtype)
    for d in range(x.shape[-1]):
        lanes[..., d % 16] += x[..., d] * x[..., d]
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return lanes[..., 0]


def normalised(x: np.ndarray, how: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and the rank of each for a first pick."""
    squares = sum_of_squares(x)
    if how is None:
        return x, squares
    length = np.sqrt(squares.astype(np.float64))
    with np.errstate(divide="ignore"):
        scale = (1 / length).astype(x.dtype)
    if how == "unit":
        return x * scale[:, None], np.ones_like(squares)
    scale = np.where(length > 1, scale, x.dtype.type(1))
    return x * scale[:, None], np.minimum(squares, 1)


def spelled_out(
    points: np.ndarray, seeds: np.ndarray, k: int, how: str | None
) -> tuple[list[int], list[float]]:
    points, rank = normalised(points, how)
    seeds, _ = normalised(seeds, how)
    nearest = np.full(len(points), np.inf, points.dtype)
    for seed in seeds:
        nearest = np.minimum(nearest, sum_of_squares(points - seed))
    if len(seeds):
        rank = nearest
    picks: list[int] = []
    radii: list[float] = []
    for _ in range(k):
        rank = rank.copy()
        rank[picks] = -1
        picks.append(int(rank.argmax()))
        nearest = np.minimum(nearest, sum_of_squares(points - points[picks[-1]]))
        radii.append(float(np.sqrt(nearest.max())))
        rank = nearest
    return picks, radii


@pytest.mark.parametrize("how", [None, "unit", "ball"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(9, 1), (30, 16), (41, 37), (3000, 50)])
@pytest.mark.parametrize("seeds", [0, 3])
def test_arithmetic_to_the_bit(
    how: str | None, dtype: torch.dtype, shape: tuple[int, int], seeds: int
) -> None:
    scale = torch.rand(shape[0], 1, generator=torch.Generator().manual_seed(1)) * 2 / math.sqrt(shape[1])
    points, centres = (normal(*shape) * scale).to(dtype), normal(seeds, shape[1], seed=2).to(dtype)
    ours = farthest_points(points, 8, seeds=centres, normalize=how)
    wide = np.float64 if dtype == torch.float64 else np.float32
    picks, radii = spelled_out(
        points.double().numpy().astype(wide), centres.double().numpy().astype(wide), 8, how
    )
    assert ours.indices[0].tolist() == picks
    assert ours.radii[0].tolist() == radii


def test_every_number_of_threads_gives_the_same_bits() -> None:
    sizes = [9000, 3, 0, 40, 8000]
    points, seeds = normal(sum(sizes), 24), normal(5, 2, 24, seed=1)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(farthest_points(points, 12, offsets=offsets_of(sizes), seeds=seeds, normalize="ball"))
    for other in results[1:]:
        assert torch.equal(other.indices, results[0].indices)
        assert torch.equal(other.radii, results[0].radii)


# Properties -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 30),
    dim=st.integers(1, 20),
    k=st.integers(1, 12),
    seeds=st.integers(0, 4),
    normalize=st.sampled_from([None, "unit", "ball"]),
    random_seed=st.integers(0, 2**31),
)
def test_greedy_property(n, dim, k, seeds, normalize, random_seed) -> None:
    """Each pick is as far from the earlier centres as any point is; radii cover, and never grow."""
    points = normal(n, dim, seed=random_seed)
    centres = normal(seeds, dim, seed=random_seed + 1)
    indices, radii = (x[0] for x in farthest_points(points, k, seeds=centres, normalize=normalize))
    x = reference.pairs.normalise(points.double(), normalize)
    s = reference.pairs.normalise(centres.double(), normalize)
    count = min(k, n)
    assert len(set(indices[:count].tolist())) == count
    assert (radii[1:] <= radii[:-1]).all()
    for i in range(count):
        before = torch.cdist(x, torch.cat([s, x[indices[:i]]])).amin(1) if seeds + i else x.norm(dim=1)
        assert before[indices[i]] >= before.max() * (1 - 1e-5) - 1e-6
        after = torch.cdist(x, torch.cat([s, x[indices[: i + 1]]])).amin(1).max()
        torch.testing.assert_close(radii[i].double(), after, rtol=1e-5, atol=1e-6)


def test_seeds_at_the_points_leave_the_others() -> None:
    points = normal(6, 5)
    assert set(farthest_points(points, 2, seeds=points[:4]).indices[0].tolist()) == {4, 5}


def test_dense_and_ragged_agree() -> None:
    points, seeds = normal(4, 7, 10), normal(4, 3, 10, seed=1)
    dense = farthest_points(points, 5, seeds=seeds)
    flat = farthest_points(
        points.flatten(0, 1),
        5,
        offsets=torch.arange(5) * 7,
        seeds=seeds.flatten(0, 1),
        seed_offsets=torch.arange(5) * 3,
    )
    assert_same(dense, flat)
    for s in range(4):
        one = farthest_points(points[s], 5, seeds=seeds[s])
        assert torch.equal(one.indices + 7 * s, dense.indices[s : s + 1])


def test_unit_vectors_tie_for_the_first_pick() -> None:
    """Their norms are equal up to rounding, so rounding must not decide."""
    points = normal(50, 9)
    points[0] = 0
    assert farthest_points(points, 1, normalize="unit").indices.item() == 1
    inside = 0.1 * normal(50, 9)
    inside[[20, 30]] *= 100
    assert farthest_points(inside, 1, normalize="ball").indices.item() == 20


def test_far_from_the_origin() -> None:
    """|x|² + |y|² − 2xy would lose everything here."""
    points = 4096.0 + torch.tensor([[0.0], [0.25], [1.0], [0.5]])
    result = farthest_points(points, 3, seeds=points[:1])
    assert result.indices.tolist() == [[2, 3, 1]]
    assert result.radii.tolist() == [[0.5, 0.25, 0.0]]


# Edges ------------------------------------------------------------------------------------------------------


def test_short_and_empty_segments() -> None:
    points = torch.tensor([[1.0], [5.0], [2.0]])
    options = {"offsets": torch.tensor([0, 0, 2, 3])}
    assert farthest_points(points, 3, **options).indices.tolist() == [[-1] * 3, [1, 0, 1], [2, 2, 2]]
    padded = farthest_points(points, 3, **options, short="pad")
    assert padded.indices.tolist() == [[-1] * 3, [1, 0, -1], [2, -1, -1]]
    assert padded.radii.tolist() == [[0] * 3, [4, 0, 0], [0] * 3]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 5), (0, 4, 5), (2, 3, 0), (0, 0, 0)])
def test_nothing_in_it(shape: tuple[int, ...]) -> None:
    points = torch.zeros(shape)
    assert_same(farthest_points(points, 2), reference.farthest_points(points, 2))


def test_layouts_and_no_gradient() -> None:
    base = normal(10, 6, seed=3)
    points, wide = base.t().contiguous().t().requires_grad_(), base.repeat(1, 2)[:, ::2]
    offsets = torch.stack([torch.tensor([0, 4, 10])] * 2, 1)[:, 0]
    result = farthest_points(points, 3, offsets=offsets, seeds=normal(1, 1, 6).expand(2, 3, 6))
    plain = farthest_points(base, 3, offsets=offsets.clone(), seeds=normal(1, 1, 6).repeat(2, 3, 1))
    assert_same(result, plain)
    assert not result.radii.requires_grad
    assert_same(farthest_points(wide, 3), farthest_points(wide.clone(), 3))
    assert not OP(points, torch.tensor([0, 10]), None, None, 2, "none", False)[1].requires_grad


def test_infinite_components() -> None:
    inf = math.inf
    points = torch.tensor([[0.0, 0.0], [inf, 0.0], [inf, 5.0], [-inf, 0.0], [1.0, 1.0]])
    result = farthest_points(points, 4, seeds=points[:1])
    assert result.indices.tolist() == [[1, 3, 2, 4]]
    torch.testing.assert_close(result.radii, torch.tensor([[inf, 5.0, math.sqrt(2), 0.0]]))


def test_huge_and_tiny_vectors_normalise() -> None:
    directions = torch.eye(4)
    for size in (1e-10, 1e-18, 1e30):
        points = size * directions
        picks = farthest_points(points, 2, seeds=directions[:1], normalize="unit").indices[0].tolist()
        assert picks == ([1, 2] if size > 1e-12 else [0, 1])  # at most 1e-12 counts as the zero vector


# Errors -----------------------------------------------------------------------------------------------------

POINTS = torch.zeros(6, 2)
CUT = torch.tensor([0, 3, 6])


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (POINTS, {"k": 0}, "k: expected an integer of at least 1, got 0"),
        (POINTS, {"k": 2.5}, "k: expected an integer of at least 1, got 2.5"),
        (POINTS, {"k": True}, "k: expected an integer of at least 1, got True"),
        (POINTS, {"normalize": "l2"}, "normalize: expected"),
        (POINTS, {"short": "wrap"}, "short: expected"),
        (POINTS.long(), {}, r"points: expected floating point.*got int64 of shape \[6, 2\]"),
        (POINTS[0], {}, r"points: .*\[N, D\] or \[S, n, D\], got float32 of shape \[2\]"),
        (POINTS, {"offsets": CUT.int()}, r"offsets: expected int64 of shape \[S \+ 1\], got int32"),
        (POINTS, {"offsets": CUT[:0]}, r"offsets: expected int64 of shape \[S \+ 1\]"),
        (POINTS.view(2, 3, 2), {"offsets": CUT}, "offsets: expected None"),
        (POINTS, {"offsets": CUT.to("meta")}, "offsets: expected device cpu"),
        (POINTS, {"seed_offsets": CUT}, "seed_offsets: expected None where seeds is None"),
        (POINTS, {"seeds": POINTS.to("meta")}, "seeds: expected device cpu"),
        (POINTS, {"seeds": POINTS[:, :1]}, "seeds: expected vectors of 2 components, got 1"),
        (POINTS, {"offsets": CUT, "seeds": POINTS}, "seeds: expected 2 segments, as points has, got 1"),
        (POINTS, {"seeds": POINTS.bool()}, "seeds: expected floating point"),
    ],
)
def test_arguments_that_do_not_fit(points: Tensor, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        farthest_points(points, **({"k": 2} | options))


@pytest.mark.parametrize(
    ("cuts", "message"),
    [
        ([0, 4, 2, 6], "offsets: expected never to decrease, got 4 and then 2 at position 1"),
        ([1, 6], "offsets: expected to start at 0 and end at 6, the rows of points, got 1 and 6"),
        ([0, 7], "offsets: expected to start at 0 and end at 6, the rows of points, got 0 and 7"),
    ],
)
def test_offsets_that_do_not_cut(cuts: list[int], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        farthest_points(POINTS, 1, offsets=torch.tensor(cuts))
    with pytest.raises(RuntimeError, match="seed_" + message.replace("points", "seeds")):
        farthest_points(torch.zeros(len(cuts) - 1, 1, 2), 1, seeds=POINTS, seed_offsets=torch.tensor(cuts))


@pytest.mark.parametrize("rows", [20, 9000])
@pytest.mark.parametrize("normalize", [None, "unit", "ball"])
@pytest.mark.parametrize("seeded", [False, True])
def test_nan_is_named(rows: int, normalize: str | None, seeded: bool) -> None:
    points, seeds = normal(rows, 20), normal(3, 20, seed=1)
    points[[rows - 3, rows - 9], 7] = math.nan
    with pytest.raises(RuntimeError, match=f"points: expected .* in row {rows - 9}"):
        farthest_points(points, 2, seeds=seeds if seeded else None, normalize=normalize)
    if seeded:
        seeds[2, 0] = math.nan
        with pytest.raises(RuntimeError, match=r"seeds: expected .* in row 2"):
            farthest_points(normal(rows, 20), 2, seeds=seeds, normalize=normalize)


def test_infinity_cannot_be_normalised() -> None:
    points = normal(5, 3)
    points[3, 0] = math.inf
    with pytest.raises(RuntimeError, match="points: expected a finite norm, got none in row 3"):
        farthest_points(points, 1, normalize="unit")


# As an operator ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("seeded", [False, True])
def test_opcheck(dtype: torch.dtype, seeded: bool) -> None:
    points = normal(9, 4).to(dtype)
    seeds = (normal(3, 4).to(dtype), torch.tensor([0, 3, 3])) if seeded else (None, None)
    torch.library.opcheck(OP, (points, torch.tensor([0, 4, 9]), *seeds, 3, "ball", True))


def test_fake_tensors_on_another_device() -> None:
    with FakeTensorMode():
        points = torch.empty(3, 7, 16, device="cuda", dtype=torch.bfloat16)
        indices, radii = farthest_points(points, 4, seeds=torch.empty(3, 2, 16, device="cuda"))
    assert (indices.shape, indices.dtype, indices.device.type) == ((3, 4), torch.int64, "cuda")
    assert (radii.shape, radii.dtype) == ((3, 4), torch.float32)


def test_compile_without_a_graph_break() -> None:
    def radius(points: Tensor, seeds: Tensor) -> Tensor:
        picks = farthest_points(points * 2, 3, seeds=seeds, normalize="ball")
        return points.flatten(0, 1)[picks.indices].sum() + picks.radii.sum()

    points, seeds = normal(4, 6, 5).requires_grad_(), normal(4, 1, 5, seed=1)
    compiled = torch.compile(radius, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(points, seeds), radius(points, seeds))
    torch.testing.assert_close(
        torch.autograd.grad(compiled(points, seeds), points),
        torch.autograd.grad(radius(points, seeds), points),
    )
