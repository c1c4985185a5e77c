"""The emulator's wgmma, mbarriers and copies of boxes, against the PTX manual's layouts."""

from __future__ import annotations

import emulator
import numpy as np
import pytest
import torch

BYTES_OF_ROW, EIGHT_ROWS = 128, 1024


def swizzled(matrix: torch.Tensor) -> torch.Tensor:
    """K-major with a 128-byte swizzle: 16-byte unit u of row r lies at unit u XOR (r mod 8) of its 128 bytes."""
    units = matrix.reshape(len(matrix), 8, 8)
    return torch.stack([row[[u ^ r % 8 for u in range(8)]] for r, row in enumerate(units)]).reshape(-1, 64)


def place_in_d(thread: int, i: int) -> tuple[int, int]:
    """ "Register Fragments for wgmma.mma_async.m64nNk16", accumulators: where d[i] of a thread lies."""
    warp, group, in_group = thread // 32 % 4, thread % 32 >> 2, thread % 4
    return 16 * warp + group + 8 * (i // 2 % 2), 8 * (i // 4) + 2 * in_group + i % 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("products", [1, 4])
def test_wgmma_follows_the_manual(dtype: torch.dtype, products: int) -> None:
    generator = torch.Generator().manual_seed(products)
    a, b = (torch.randint(-9, 10, (64, 64), generator=generator) / 8 for _ in range(2))
    d = torch.randint(-9, 10, (64, 64), generator=generator).float()
    sums = torch.stack([torch.stack([d[place_in_d(t, i)] for i in range(32)]) for t in range(128)])
    bits = [swizzled(x).to(dtype).view(torch.uint16).numpy() for x in (a, b)]
    before, after, descriptors = emulator.load().wgmma(
        *bits, sums.numpy(), str(dtype).removeprefix("torch."), products
    )
    assert np.isnan(before).all()  # nobody has waited
    k = 16 * products
    truth = d + a[:, :k] @ b[:, :k].T
    assert all(after[t, i] == truth[place_in_d(t, i)] for t in range(128) for i in range(32))

    # "Matrix Descriptor Format": units of 16 bytes; the swizzle mode of 128 bytes is 1, in bits 62 and 63.
    for matrix, begin in enumerate((0, 64 * BYTES_OF_ROW)):
        for step in range(products):
            field = int(descriptors[matrix, step])
            assert (field & 0x3FFF) << 4 == begin + step * 16 * 2
            assert (field >> 32 & 0x3FFF) << 4 == EIGHT_ROWS
            assert field >> 49 & 7 == 0  # patterns begin at multiples of 1024 bytes
            assert field >> 62 == 1


def test_wgmma_wants_a_fence() -> None:
    zeros = np.zeros((64, 64), np.uint16)
    with pytest.raises(RuntimeError, match="wgmma: nobody has fenced its sums"):
        emulator.load().wgmma(zeros, zeros, np.zeros((128, 32), np.float32), "bfloat16", 1, fenced=False)


@pytest.mark.parametrize(("column", "row"), [(0, 0), (64, 8), (64, 37), (0, 50), (0, -3), (128, 0)])
def test_a_box_arrives_swizzled_and_filled_with_zeros(column: int, row: int) -> None:
    """Of a matrix of 45 rows of 72 numbers."""
    matrix = torch.arange(1, 45 * 72 + 1).reshape(45, 72)
    whole = torch.zeros(45 + 64, 72 + 128, dtype=torch.int64)
    whole[8:53, :72] = matrix
    expected = swizzled(whole[8 + row :][:32, column : column + 64])
    before, after = emulator.load().copy_box(matrix.numpy().astype(np.uint16), 32, column, row)
    assert (before == 0xFFFF).all()
    assert (after == expected.numpy()).all()


def test_copies_that_a_gpu_would_not_make_are_errors() -> None:
    module, matrix = emulator.load(), np.zeros((40, 64), np.uint16)
    with pytest.raises(RuntimeError, match="its mbarrier was not fenced"):
        module.copy_box(matrix, 32, 0, 0, fenced=False)
    with pytest.raises(
        RuntimeError,
        match=r"cp\.async\.bulk\.tensor: not 4096 bytes of shared memory on a 1024-byte boundary",
    ):
        module.copy_box(matrix, 32, 0, 0, misplaced=128)
    with pytest.raises(RuntimeError, match="deadlock"):  # bytes that never come
        module.copy_box(matrix, 32, 0, 0, bytes_off=16)


def test_mbarriers_go_round() -> None:
    """Left out, each wait and each arrival is missed."""
    module, numbers = emulator.load(), np.arange(5 * 32, dtype=np.int32)

    def differs(seed: int) -> bool:
        module.set_seed(seed)
        expected = numbers.reshape(5, 32)[:, ::-1].reshape(-1)
        return bool((module.handed_over(numbers) != expected).any())

    assert not any(differs(seed) for seed in range(5))
    assert emulator.unneeded_barriers(differs) == []


def test_arrivals_are_counted() -> None:
    numbers = np.arange(32, dtype=np.int32)
    with pytest.raises(RuntimeError, match=r"deadlock at hopper_primitives\.cpp:\d+"):
        emulator.load().handed_over(numbers, arrivals=33)
    with pytest.raises(RuntimeError, match=r"deadlock|more arrivals at an mbarrier"):
        emulator.load().handed_over(np.arange(96, dtype=np.int32), arrivals=20)
