"""The emulator itself: what it runs behaves as on a GPU where it can, and shows mistakes where it must."""

from __future__ import annotations

import itertools
from typing import Any

import emulator
import numpy as np
import pytest
import torch

# "Matrix Fragments for mma.m16n8k8" in the PTX manual, .tf32: where element i of a lane's fragment lies.
LANES = range(32)


def place_in_a(lane: int, i: int) -> tuple[int, int]:
    group, in_group = lane >> 2, lane % 4
    return group if i in (0, 2) else group + 8, in_group if i in (0, 1) else in_group + 4


def place_in_b(lane: int, i: int) -> tuple[int, int]:
    group, in_group = lane >> 2, lane % 4
    return in_group if i == 0 else in_group + 4, group


def place_in_d(lane: int, i: int) -> tuple[int, int]:
    group, in_group = lane >> 2, lane % 4
    return group if i in (0, 1) else group + 8, in_group * 2 + (i & 1)


@pytest.mark.parametrize("precise", [False, True])
def test_mma_follows_the_manual(precise: bool) -> None:
    generator = np.random.default_rng(0)
    # Small integers: exact in tf32, so one product is the whole truth.
    a, b, d = (generator.integers(-9, 10, shape).astype(np.float32) for shape in ((16, 8), (8, 8), (16, 8)))
    lanes_a = np.array([[a[place_in_a(lane, i)] for i in range(4)] for lane in LANES], np.float32)
    lanes_b = np.array([[b[place_in_b(lane, i)] for i in range(2)] for lane in LANES], np.float32)
    lanes_d = np.array([[d[place_in_d(lane, i)] for i in range(4)] for lane in LANES], np.float32)
    got = emulator.load().mma(lanes_a, lanes_b, lanes_d, precise)
    product = d + a @ b
    assert all(got[lane, i] == product[place_in_d(lane, i)] for lane in LANES for i in range(4))


def test_one_product_rounds_to_tf32_and_three_do_not() -> None:
    a = np.full((32, 4), 1 + 2**-11 + 2**-20, np.float32)
    b, d = np.full((32, 2), 0.125, np.float32), np.zeros((32, 4), np.float32)
    coarse, fine = (emulator.load().mma(a, b, d, precise)[0, 0] for precise in (False, True))
    assert coarse == 1 + 2**-10
    assert fine == pytest.approx(1 + 2**-11 + 2**-20, abs=2**-22)


def outer_products(a: np.ndarray, b: np.ndarray, precise: bool) -> np.ndarray:
    """Of sixteen numbers and eight, [16, 8]: a matrix of one column times one of one row."""
    lanes_a, lanes_b = np.zeros((32, 4), np.float32), np.zeros((32, 2), np.float32)
    for lane in LANES:
        row, k = place_in_a(lane, 0)
        if k == 0:
            lanes_a[lane, :2] = a[row], a[row + 8]
        k, column = place_in_b(lane, 0)
        if k == 0:
            lanes_b[lane, 0] = b[column]
    got = emulator.load().mma(lanes_a, lanes_b, np.zeros((32, 4), np.float32), precise)
    products = np.empty((16, 8), np.float32)
    for lane in LANES:
        for i in range(4):
            products[place_in_d(lane, i)] = got[lane, i]
    return products


def test_three_products_are_as_good_as_one_of_floats_and_not_biased() -> None:
    """With factors cut off to tf32 instead of rounded they would be 2e-7 too small in the mean."""
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(60):
        a, b = ((generator.random(n) + 1).astype(np.float32) for n in (16, 8))
        a *= generator.choice([-1, 1], 16) * 2.0 ** generator.integers(-40, 40, 16)
        exact = np.outer(a.astype(np.float64), b.astype(np.float64))
        errors.append(outer_products(a, b, True) / exact - 1)
    assert np.abs(errors).max() <= 2**-21 + 2**-24
    assert np.abs(np.mean(errors)) < 5e-9


@pytest.mark.parametrize(
    ("bits", "precise"),
    [
        *itertools.product([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF], [False, True]),
        (0x7F800001, True),  # one product looks at ten bits of the fraction: they are those of an infinity
    ],
)
def test_nan_stays_nan_whatever_its_bits(bits: int, precise: bool) -> None:
    """Adding half of a tf32's last bit makes numbers of some of them."""
    a, b = np.ones(16, np.float32), np.ones(8, np.float32)
    a[3] = np.array([bits], np.uint32).view(np.float32)[0]
    got = outer_products(a, b, precise)
    assert np.isnan(got[3]).all()
    assert (np.delete(got, 3, 0) == 1).all()


def sum_of(begin: float, products: list[float]) -> float:
    """Of one row and column: the products of eight numbers and 1, upon `begin`."""
    a, b, d = (np.zeros(shape, np.float32) for shape in ((32, 4), (32, 2), (32, 4)))
    for lane in LANES:
        for i in range(4):
            row, k = place_in_a(lane, i)
            if row == 0:
                a[lane, i] = products[k]
    b[:], d[:] = 1, begin
    return emulator.load().mma(a, b, d, False)[0, 0]


def test_tensor_cores_cut_off_what_does_not_fit() -> None:
    """As published of the A100: four products at a time, one bit beside a float's, towards zero."""
    tiny = 2**-24
    assert sum_of(1, [tiny] * 8) == 1  # to nearest, ties to even, one by one
    with emulator.sums_cut_off():
        assert (
            sum_of(1, [tiny] * 8) == 1 + 8 * tiny
        )  # the bit beside a float's holds them until four are there
        assert sum_of(1, [tiny / 2] * 8) == 1
        assert sum_of(1, [tiny, tiny / 2, tiny / 2, 0] * 2) == 1
        assert sum_of(1, [3 * tiny, 0, 0, 0] * 2) == 1 + 4 * tiny  # 1 + 2 · tiny is left of each
        assert sum_of(-1, [-3 * tiny, 0, 0, 0] * 2) == -1 - 4 * tiny
        assert sum_of(1, [-tiny / 2] * 8) == 1
        assert sum_of(0, [1, tiny / 2, -1, 0] + [0] * 4) == 0
        assert np.isnan(sum_of(1, [np.nan] + [0] * 7))
        assert sum_of(np.inf, [1] * 8) == np.inf


# "Matrix Fragments for mma.m16n8k16 with floating point type", .f16 and .bf16.
def place_in_a16(lane: int, i: int) -> tuple[int, int]:
    group, in_group = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    return row, in_group * 2 + (i & 1) + (8 if i >= 4 else 0)


def place_in_b16(lane: int, i: int) -> tuple[int, int]:
    group, in_group = lane >> 2, lane % 4
    return in_group * 2 + (i & 1) + (8 if i >= 2 else 0), group


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mma_of_16_bits_follows_the_manual(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-9, 10, shape, generator=generator) / 8 for shape in ((16, 16), (16, 8)))
    d = torch.randint(-9, 10, (16, 8), generator=generator).float()

    def lanes(x: torch.Tensor, place: Any, count: int) -> torch.Tensor:
        return torch.stack([torch.stack([x[place(lane, i)] for i in range(count)]) for lane in LANES])

    packed = [
        lanes(x, *of).to(dtype).view(torch.uint16).numpy()
        for x, of in ((a, (place_in_a16, 8)), (b, (place_in_b16, 4)))
    ]
    got = emulator.load().mma16(*packed, lanes(d, place_in_d, 4).numpy(), str(dtype).removeprefix("torch."))
    assert (got == lanes(d + a @ b, place_in_d, 4).numpy()).all()


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_follows_the_manual(transposed: bool) -> None:
    """Thread 4r + c has elements 2c and 2c + 1 of row r of each matrix; .trans: of column r."""
    matrices = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)
    got = emulator.load().load_matrices(matrices, transposed).reshape(32, 4, 2)
    seen = matrices.swapaxes(1, 2) if transposed else matrices
    for lane in LANES:
        assert got[lane].tolist() == seen[:, lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].tolist()


def test_rows_in_the_same_banks_are_counted() -> None:
    module = emulator.load()
    loads, conflicts = module.matrix_loads(), module.matrix_conflicts()
    module.load_matrices(np.zeros((4, 8, 8), np.uint16), False)  # rows one after the other: every bank once
    assert (module.matrix_loads() - loads, module.matrix_conflicts() - conflicts) == (4, 0)
    module.load_matrices(np.zeros((4, 8, 8), np.uint16), False, stride=32)
    assert (module.matrix_loads() - loads, module.matrix_conflicts() - conflicts) == (8, 4)


def test_what_a_gpu_traps_on_is_an_error() -> None:
    module = emulator.load()
    with pytest.raises(RuntimeError, match="ldmatrix: not 16 bytes of shared memory on a 16-byte boundary"):
        module.load_matrices(np.zeros((4, 8, 8), np.uint16), False, misplaced=2)
    with pytest.raises(RuntimeError, match="ldmatrix: not 16 bytes of shared memory"):
        module.load_matrices(np.zeros((4, 8, 8), np.uint16), False, misplaced=16 * 33)
    with pytest.raises(RuntimeError, match=r"cp\.async: not 16 bytes of shared memory on a 16-byte boundary"):
        module.async_copy(np.zeros(4, np.float32), 16, misplaced=4)
    with pytest.raises(RuntimeError, match=r"cp\.async: from no 16-byte boundary"):
        module.async_copy(np.zeros(8, np.float32)[1:5], 16)
    with pytest.raises(RuntimeError, match="CUDA refuses a launch of such a grid"):
        module.no_blocks()


@pytest.mark.parametrize("valid", [0, 4, 12, 16])
def test_an_asynchronous_copy_arrives_when_waited_for(valid: int) -> None:
    source = np.array([1, 2, 3, 4], np.float32)
    before, after = emulator.load().async_copy(source, valid)
    assert np.isnan(before).all()
    assert after.tolist() == [1, 2, 3, 4][: valid // 4] + [0] * (4 - valid // 4)


def test_products_are_fused_with_sums_where_the_source_lets_the_compiler() -> None:
    """As by nvcc: a · b - a · b is what rounding the second product has left."""
    generator = np.random.default_rng(0)
    a, b = (generator.random(32).astype(np.float32) for _ in range(2))
    plain, rounded = emulator.load().differences_of_products(a, b, a, b)
    assert not rounded.any()
    if not plain.any():
        pytest.skip("this machine has no fused multiply-add, or the emulator does not know of it")
    assert np.abs(plain).max() < 2**-24


def test_a_missing_barrier_shows() -> None:
    module, numbers = emulator.load(), np.arange(256, dtype=np.int32)

    def differs(seed: int) -> bool:
        module.set_seed(seed)
        return module.reversed(numbers).tolist() != numbers[::-1].tolist()

    assert not differs(1)
    assert emulator.unneeded_barriers(differs) == []


def test_threads_that_wait_for_each_other_are_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"deadlock at primitives\.cpp:\d+"):
        emulator.load().deadlock()
    numbers = np.arange(64, dtype=np.int32)
    # The next launch is sound.
    assert emulator.load().reversed(numbers).tolist() == numbers[::-1].tolist()


def test_writing_behind_shared_memory_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="a kernel wrote behind its shared memory"):
        emulator.load().overrun()
