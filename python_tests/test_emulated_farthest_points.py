"""The CUDA kernels of k-center under emulation: the bits of the CPU operator, in every regime and order of threads."""

from __future__ import annotations

import math
import mmap
from itertools import pairwise

import emulator
import pytest
import torch
from helpers import one_thread  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from ragged_inputs import integers, normal, offsets_of
from torch import Tensor

import ccp_fast  # noqa: F401  registers the operator

OP = torch.ops.ccp_fast.farthest_points.default
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
Result = tuple[Tensor, Tensor]


class Case:
    """Points and seeds on the CPU, and what is to be done with them."""

    def __init__(
        self,
        points: Tensor,  # [N, D]
        offsets: Tensor,
        seeds: Tensor | None = None,
        seed_offsets: Tensor | None = None,
        *,
        k: int = 3,
        normalize: str = "none",
        pad: bool = False,
        largest: int | None = None,
    ) -> None:
        self.points, self.offsets, self.seeds, self.seed_offsets = points, offsets, seeds, seed_offsets
        self.k, self.normalize, self.pad = k, normalize, pad
        self.segments, self.dim = len(offsets) - 1, points.shape[1]
        sizes = [b - a for a, b in pairwise(offsets.tolist())]
        self.largest = min(len(points), max([0, *sizes])) if largest is None else largest

    def expected(self) -> Result:
        return OP(self.points, self.offsets, self.seeds, self.seed_offsets, self.k, self.normalize, self.pad)

    def emulated(self, regime: str, seed: int = 0, *, sanitize: bool = False) -> Result:
        kernels = emulator.load(sanitize=sanitize)
        kernels.set_seed(seed)
        wide = torch.float64 if self.points.dtype == torch.float64 else torch.float32
        indices = torch.full((self.segments, self.k), -99)
        radii = torch.full((self.segments, self.k), math.nan, dtype=wide)
        problem = self.problem(kernels, indices, radii)
        poison = (0xFF, 0x7F)[seed % 2]  # NaN, or huge
        kernels.farthest_points(problem, self.plan(kernels, problem, regime), poison=poison)
        return indices, radii

    def problem(self, kernels, indices: Tensor, radii: Tensor):
        def vectors(x: Tensor | None, offsets: Tensor | None):
            if x is None or offsets is None:
                return kernels.RaggedVectors(0, name_of(self.points.dtype), 0, 0)
            return kernels.RaggedVectors(x.data_ptr(), name_of(x.dtype), len(x), offsets.data_ptr())

        self._seeds = self._kernel_seeds()  # kept alive
        return kernels.FarthestPointsProblem(
            points=vectors(self.points, self.offsets),
            seeds=vectors(self._seeds, self.seed_offsets),
            segments=self.segments,
            largest_segment=self.largest,
            dim=self.dim,
            k=self.k,
            normalize=self.normalize,
            pad=self.pad,
            indices=indices.data_ptr(),
            radii=radii.data_ptr(),
        )

    def _kernel_seeds(self) -> Tensor | None:
        """Of the points' type, or of that in which they are computed; others are the caller's to convert."""
        wide = torch.float64 if self.points.dtype == torch.float64 else torch.float32
        if self.seeds is None or self.seeds.dtype in (self.points.dtype, wide):
            return self.seeds
        return self.seeds.to(wide)

    def plan(self, kernels, problem, regime: str):
        """Forces a regime that chance would choose for other sizes only."""
        plan = kernels.plan_farthest_points(problem, 227 << 10)
        least = kernels.farthest_points_least_shared(self.dim, self.points.dtype == torch.float64)
        if regime == "planned":
            return plan
        plan.large_elements = plan.NONE
        plan.segments_per_block = 1
        plan.shared_bytes = 1 << 20
        if regime == "warps":
            plan.segments_per_block = 3
        elif regime == "streamed":
            plan.shared_bytes = least
        elif regime == "mixed":  # a little room, for those that come first
            plan.segments_per_block = 5
            plan.shared_bytes = 8 * least
        elif regime == "large":
            plan.large_elements = 0
            plan.rows_per_chunk = 33
        elif regime == "some large":
            plan.large_elements = 3 * self.dim
            plan.rows_per_chunk = 70
            plan.segments_per_block = 8
        else:
            assert regime == "blocks"
        return plan


REGIMES = ["planned", "warps", "blocks", "streamed", "mixed", "large", "some large"]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def assert_same(ours: Result, theirs: Result) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other)


def ragged(
    sizes: list[int], seed_sizes: list[int] | None, dim: int, *, seed: int = 0, dtype=torch.float32, **options
) -> Case:
    """Normal vectors with norms on both sides of 1, some of them twice."""
    scale = 1.2 / math.sqrt(max(dim, 1))
    points = normal(sum(sizes), dim, seed=seed) * scale
    if len(points) > 3:
        points[2::7] = points[0]
    if seed_sizes is None:
        return Case(points.to(dtype), offsets_of(sizes), **options)
    seeds = (normal(sum(seed_sizes), dim, seed=seed + 1) * scale).to(dtype)
    return Case(points.to(dtype), offsets_of(sizes), seeds, offsets_of(seed_sizes), **options)


# Against the CPU --------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    regime=st.sampled_from(REGIMES),
    sizes=st.lists(st.integers(0, 9) | st.integers(0, 40), min_size=1, max_size=6),
    seed_sizes=st.lists(st.integers(0, 6), min_size=6, max_size=6),
    seeded=st.booleans(),
    dim=st.integers(0, 70),
    k=st.integers(1, 9),
    limit=st.integers(0, 3),
    dtype=st.sampled_from(FLOATS),
    seed_dtype=st.sampled_from(FLOATS),
    normalize=st.sampled_from(["none", "unit", "ball"]),
    pad=st.booleans(),
    random_seed=st.integers(0, 2**31),
)
def test_equals_cpu_among_ties(
    regime, sizes, seed_sizes, seeded, dim, k, limit, dtype, seed_dtype, normalize, pad, random_seed
) -> None:
    points = integers(sum(sizes), dim, seed=random_seed, limit=limit).to(dtype)
    counts = seed_sizes[: len(sizes)]
    seeds = integers(sum(counts), dim, seed=random_seed + 1, limit=limit).to(seed_dtype) if seeded else None
    case = Case(
        points,
        offsets_of(sizes),
        seeds,
        offsets_of(counts) if seeded else None,
        k=k,
        normalize=normalize,
        pad=pad,
    )
    assert_same(case.emulated(regime, random_seed), case.expected())


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("normalize", ["none", "unit", "ball"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_cpu_in_every_rounding(regime: str, normalize: str, dtype: torch.dtype) -> None:
    for dim, seed_sizes in ((128, [4, 4, 1, 2, 9]), (37, None), (16, [0, 3, 5, 0, 8])):
        case = ragged([7, 30, 0, 1, 75], seed_sizes, dim, dtype=dtype, k=8, normalize=normalize)
        assert_same(case.emulated(regime, seed=dim), case.expected())


@pytest.mark.parametrize("regime", REGIMES)
def test_every_order_of_threads_gives_the_same(regime: str) -> None:
    case = ragged([20, 3, 70], [2, 5, 0], 21, k=6)
    expected = case.expected()
    for seed in range(6):
        assert_same(case.emulated(regime, seed), expected)


@pytest.mark.parametrize("regime", REGIMES)
def test_unaligned_memory(regime: str) -> None:
    """Rows of a multiple of four components, that begin where four cannot be loaded at once."""
    memory = normal(1 + 40 * 32)
    case = Case(memory[1:].view(40, 32), offsets_of([33, 7]), normal(3, 32, seed=1), offsets_of([1, 2]))
    assert case.points.data_ptr() % 16
    assert_same(case.emulated(regime), case.expected())


def clusters(count: int, dim: int, seed: int) -> Tensor:
    """A few tight ones far apart, in turn: the triangle inequality then rules out all points but a cluster's."""
    centres = 40 * normal(4, dim, seed=seed).repeat(count // 4 + 1, 1)[:count]
    return centres + 0.1 * normal(count, dim, seed=seed + 1)


@pytest.mark.parametrize("seeds", [0, 3, 9])
@pytest.mark.parametrize("normalize", ["none", "ball", "unit"])
def test_pruning_changes_nothing(seeds: int, normalize: str) -> None:
    both = clusters(330 + 2 * seeds, 21, seed=1) / (40 if normalize == "ball" else 1)
    points, flat = both[2 * seeds :], both[: 2 * seeds]
    cuts = offsets_of([seeds, seeds])
    case = Case(points, offsets_of([200, 130]), *((flat, cuts) if seeds else ()), k=16, normalize=normalize)
    assert_same(case.emulated("large"), case.expected())


@pytest.mark.parametrize("regime", REGIMES)
def test_points_just_at_the_edge_of_pruning(regime: str) -> None:
    """On a line, half way between centres: equal distances must stay with the first, and none be overlooked."""
    steps = torch.arange(60.0)[:, None] * torch.tensor([[3.0, 4.0, 0.0]]) / 5
    for scale in (1.0, 0.1, 1 / 3, 1e-17, 1e18):
        points = (steps * scale).roll(17, 0)
        case = Case(points, offsets_of([60]), points[:1].clone(), offsets_of([1]), k=20)
        assert_same(case.emulated(regime), case.expected())


@pytest.mark.parametrize("regime", ["planned", "large"])
def test_vectors_longer_than_shared_memory(regime: str) -> None:
    case = ragged([3, 0, 5], [1, 2, 5], 15_001, k=4, normalize="ball")
    assert_same(case.emulated(regime), case.expected())


def test_thousands_of_tiny_segments() -> None:
    sizes = torch.randint(0, 11, (1300,), generator=torch.Generator().manual_seed(3)).tolist()
    case = ragged(sizes, [2] * 1300, 8, k=2)
    assert_same(case.emulated("planned"), case.expected())


# Edges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regime", REGIMES)
def test_more_picks_than_points(regime: str) -> None:
    for pad in (False, True):
        case = ragged([2, 0, 40], None, 5, k=83, pad=pad)
        assert_same(case.emulated(regime), case.expected())


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("rows", "segments", "dim"), [(0, 3, 4), (0, 0, 4), (6, 2, 0), (0, 1, 0)])
def test_nothing_in_it(regime: str, rows: int, segments: int, dim: int) -> None:
    cuts = torch.arange(segments + 1) * (rows // max(segments, 1))
    case = Case(torch.zeros(rows, dim), cuts)
    assert_same(case.emulated(regime), case.expected())


@pytest.mark.parametrize("regime", REGIMES)
def test_infinite_components(regime: str) -> None:
    inf = math.inf
    points = torch.tensor([[0.0, 0.0], [inf, 0.0], [inf, 5.0], [-inf, 0.0], [1.0, 1.0], [inf, -inf]])
    for seeds in (points[:1], points[1:], None):
        cuts = None if seeds is None else offsets_of([len(seeds)])
        case = Case(points, offsets_of([6]), None if seeds is None else seeds.clone(), cuts, k=6)
        assert_same(case.emulated(regime), case.expected())


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("normalize", ["unit", "ball"])
def test_norms_beyond_float(regime: str, normalize: str) -> None:
    """Squares that over- or underflow are added up again in double."""
    for size in (1e-25, 1e-18, 1e-13, 1e-12, 1e18, 1e25, 1e37):
        points = torch.cat([normal(9, 20) * size, torch.zeros(1, 20), normal(3, 20, seed=1)])
        case = Case(points, offsets_of([13]), points[:2] * 2, offsets_of([2]), k=5, normalize=normalize)
        assert_same(case.emulated(regime), case.expected())
        case = Case(points, offsets_of([13]), k=5, normalize=normalize)
        assert_same(case.emulated(regime), case.expected())


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("normalize", ["none", "unit", "ball"])
@pytest.mark.parametrize("seeded", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_comes_last(regime: str, normalize: str, seeded: bool, dtype: torch.dtype) -> None:
    """Points that hold NaN follow all others, in order, and count for nothing; neither does a seed like it."""
    good = normal(11, 18).to(dtype)
    seeds = normal(3, 18, seed=1).to(dtype)
    cuts = offsets_of([3])
    without = Case(good, offsets_of([11]), *((seeds, cuts) if seeded else ()), k=11, normalize=normalize)
    expected, radii = without.expected()

    bad = [0, 4, 13]
    places = [i for i in range(14) if i not in bad]
    points = torch.full((14, 18), math.nan, dtype=dtype)
    points[places] = good
    points[4] = 1.0
    points[4, 17] = math.nan if normalize == "none" else math.inf
    with_nan = torch.cat([torch.full((2, 18), math.nan, dtype=dtype), seeds])
    case = Case(
        points,
        offsets_of([14]),
        *((with_nan, offsets_of([5])) if seeded else ()),
        k=16,
        normalize=normalize,
    )
    ours, our_radii = case.emulated(regime)
    order = [*(places[i] for i in expected[0].tolist()), *bad]
    assert ours[0].tolist() == [*order, *order[:2]]
    assert our_radii[0].tolist() == [*radii[0].tolist(), 0, 0, 0, 0, 0]


@pytest.mark.parametrize("regime", REGIMES)
def test_only_nan(regime: str) -> None:
    points = torch.full((3, 2), math.nan)
    for case in (
        Case(points, offsets_of([3]), k=4),
        Case(points, offsets_of([3]), torch.zeros(1, 2), offsets_of([1]), k=4),
        Case(points, offsets_of([3]), points.clone(), offsets_of([3]), k=4),
    ):
        indices, radii = case.emulated(regime)
        assert indices.tolist() == [[0, 1, 2, 0]]
        assert radii.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    "cuts", [[0, 9, 3, 9, 3, 9], [-5, 3, 2**40, 9, 9, 9], [9, 0, 9, 0, 9, 9], [2**62, -(2**62), 4, 5, 1, 0]]
)
def test_offsets_that_do_not_cut_touch_nothing_else(regime: str, cuts: list[int]) -> None:
    """Every result is a row that exists, or none; the emulator watches the scratch memory."""
    memory = torch.full((30, 3), math.nan)
    memory[10:19] = normal(9, 3)
    for seeded in (False, True):
        seeds = (normal(9, 3, seed=1), torch.tensor(cuts)) if seeded else ()
        case = Case(memory[10:19], torch.tensor(cuts), *seeds, k=4)
        indices, radii = case.emulated(regime)
        assert ((indices >= -1) & (indices < 9)).all()
        assert not radii.isnan().any()


@pytest.mark.parametrize("regime", REGIMES)
def test_no_more_rows_than_announced(regime: str) -> None:
    points = normal(90, 6)
    case = Case(points, offsets_of([90]), k=50, largest=41)
    assert_same(case.emulated(regime), Case(points[:41], offsets_of([41]), k=50).expected())


@pytest.mark.parametrize("regime", ["warps", "blocks", "streamed", "large"])
def test_rows_beyond_32_bits(regime: str) -> None:
    """The rows before the first that is used are not there at all, nor is scratch memory for them."""
    kernels = emulator.load()
    far, dim, k = 3 * 2**31 + 5, 3, 4
    case = ragged([9, 40], [2, 5], dim, k=k, normalize="ball")
    expected, expected_radii = case.expected()
    indices, radii = torch.full((2, k), -99), torch.full((2, k), math.nan)
    cuts = case.offsets + far
    problem = case.problem(kernels, indices, radii)
    before = (case.points.data_ptr() - 4 * dim * far) % 2**64  # addresses wrap round
    problem.points = kernels.RaggedVectors(before, "float32", far + 49, cuts.data_ptr())
    plan = case.plan(kernels, problem, regime)
    plan.rows_per_chunk = 2**28
    bytes_wanted = kernels.farthest_points_workspace_bytes(problem, plan)
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, as of Python 3.13
    memory = mmap.mmap(-1, bytes_wanted, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve)
    kernels.farthest_points(problem, plan, torch.frombuffer(memory, dtype=torch.uint8).data_ptr())
    assert torch.equal(indices, expected + far)
    assert torch.equal(radii, expected_radii)


def test_no_undefined_behaviour() -> None:
    """In a build that ends the process at the first."""
    for regime in REGIMES:
        for dtype in FLOATS:
            case = ragged([9, 0, 70, 5], [1, 2, 5, 4], 21, k=6, dtype=dtype, normalize="unit")
            assert_same(case.emulated(regime, sanitize=True), case.expected())


# The plan ---------------------------------------------------------------------------------------------------


def planned(
    rows: int, segments: int, dim: int, *, seeds: int = 0, largest: int | None = None, limit: int = 227
):
    kernels = emulator.load()
    problem = kernels.FarthestPointsProblem(
        points=kernels.RaggedVectors(0, "float32", rows, 0),
        seeds=kernels.RaggedVectors(0, "float32", seeds, 0),
        segments=segments,
        largest_segment=rows if largest is None else largest,
        dim=dim,
        k=4,
        normalize="none",
        pad=False,
        indices=0,
        radii=0,
    )
    plan = kernels.plan_farthest_points(problem, limit << 10)
    assert plan.shared_bytes <= limit << 10
    return plan


def test_plan() -> None:
    sop = planned(11_318 * 7, 11_318, 128, seeds=4 * 11_318)
    assert sop.segments_per_block == 8
    assert sop.large_elements == sop.NONE  # one launch for all classes
    assert planned(11_318 * 7, 11_318, 512, seeds=4 * 11_318).segments_per_block > 1
    assert planned(10**6, 1, 128).large_elements < 10**6 * 128
    assert planned(10**6, 10_000, 128, largest=100).large_elements == sop.NONE
    assert planned(10**6, 10_000, 128).large_elements != sop.NONE
    assert planned(300 * 1000, 1000, 128).segments_per_block == 1
    for limit in (48, 99, 163, 227):
        for dim in (0, 1, 128, 1000, 4096, 10_000, 100_000):
            for rows in (0, 1, 100, 10_000):
                planned(rows * 100, 100, dim, seeds=300, limit=limit)


# Races ------------------------------------------------------------------------------------------------------


def test_every_barrier_is_needed() -> None:
    cases = [
        (ragged([30, 3, 70, 5, 9, 9], [9, 5, 0, 0, 4, 2], 21, k=5), regime)
        for regime in ("warps", "blocks", "streamed", "mixed", "large", "some large")
    ]
    expected = cases[0][0].expected()

    def differs(seed: int) -> bool:
        try:
            results = [case.emulated(regime, seed) for case, regime in cases]
        except RuntimeError:
            return True
        return any(
            not torch.equal(mine, other)
            for result in results
            for mine, other in zip(result, expected, strict=True)
        )

    assert emulator.unneeded_barriers(differs) == []
