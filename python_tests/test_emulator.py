"""The emulator itself: what it runs behaves as on a GPU where it can, and shows mistakes where it must."""

from __future__ import annotations

import emulator
import numpy as np
import pytest

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


@pytest.mark.parametrize("valid", [0, 4, 12, 16])
def test_an_asynchronous_copy_arrives_when_waited_for(valid: int) -> None:
    source = np.array([1, 2, 3, 4], np.float32)
    before, after = emulator.load().async_copy(source, valid)
    assert np.isnan(before).all()
    assert after.tolist() == [1, 2, 3, 4][: valid // 4] + [0] * (4 - valid // 4)


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
