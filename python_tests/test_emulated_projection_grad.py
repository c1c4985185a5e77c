"""The CUDA kernel of the proximal gradient under emulation: the bits of the CPU operator, in any order of threads."""

from __future__ import annotations

import itertools

import emulator
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import ccp_fast  # noqa: F401  registers the operator

OP = torch.ops.ccp_fast.projection_grad_.default
FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CHUNK = 1 << 15  # elements that one block does, and one sum holds

Triple = tuple[Tensor, Tensor, Tensor | None]  # param, previous, grad


@pytest.fixture(autouse=True, scope="module")
def _emulator_and_one_thread():
    emulator.load()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Adds nothing, and makes the penalty float64, where every bit of the sum shows.
WIDE: Triple = (torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), None)


def array(x: Tensor | None) -> tuple[int, str]:
    return (0, "float32") if x is None else (x.data_ptr(), str(x.dtype).removeprefix("torch."))


def emulated(triples: list[Triple], lam: float, *, seed: int = 0, sanitize: bool = False) -> float:
    """The penalty in float64; gradients are updated in place."""
    kernels = emulator.load(sanitize=sanitize)
    kernels.set_seed(seed)
    tensors = [(array(g), array(w), array(v), w.numel()) for w, v, g in triples]
    return kernels.projection_grad(tensors, lam, "float64")


def on_cpu(triples: list[Triple], lam: float) -> float:
    triples = [*triples, WIDE]
    grads = [g for _, _, g in triples if g is not None]
    return OP(grads, [w for w, _, _ in triples], [v for _, v, _ in triples], lam).item()


def copies(triples: list[Triple]) -> list[Triple]:
    """With gradients of their own; tensors that were a parameter's own gradient stay that."""
    result: list[Triple] = []
    for w, v, g in triples:
        own = w.clone()
        result.append((own, v, own if g is w else None if g is None else g.clone()))
    return result


def bits(triples: list[Triple]) -> list[bytes]:
    return [g.contiguous().view(torch.uint8).numpy().tobytes() for _, _, g in triples if g is not None]


def check_equal(triples: list[Triple], lam: float = 0.3, *, seed: int = 0, sanitize: bool = False) -> None:
    """Gradients in front, as the operator wants them: the order is part of what is summed."""
    triples = sorted(triples, key=lambda t: t[2] is None)
    theirs = copies(triples)
    expected = on_cpu(theirs, lam)
    assert emulated(triples, lam, seed=seed, sanitize=sanitize) == expected
    assert bits(triples) == bits(theirs)


def normal(n: int, seed: int, dtype: torch.dtype = torch.float32, offset: int = 0) -> Tensor:
    """n numbers that begin `offset` elements behind an aligned address."""
    whole = torch.randn(n + offset, generator=torch.Generator().manual_seed(seed))
    return whole.to(dtype)[offset:]


def triple(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Triple:
    return normal(n, seed, dtype), normal(n, seed + 1, dtype), normal(n, seed + 2, dtype)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), lam=st.floats(-2, 2), seed=st.integers(0, 2**31))
def test_any_list_of_tensors(data: st.DataObject, lam: float, seed: int) -> None:
    """Odd sizes, empty tensors, any mix of types and alignments, gradients that are missing or the parameter itself."""
    triples: list[Triple] = []
    for i in range(data.draw(st.integers(1, 6))):
        n = data.draw(st.sampled_from([0, 1, 3, 15, 16, 17, 1023, 1025, 2048, 2051, 4097]))
        same = data.draw(st.booleans())
        dtypes = [data.draw(st.sampled_from(FLOATS))] * 3
        if not same:
            dtypes = [data.draw(st.sampled_from(FLOATS)) for _ in range(3)]
        w, v, g = (
            normal(n, 3 * i + j, dtype, data.draw(st.sampled_from([0, 0, 1])))
            for j, dtype in enumerate(dtypes)
        )
        kind = data.draw(st.sampled_from(["own", "none", "param"]))
        triples.append((w, v, {"own": g, "none": None, "param": w}[kind]))
    check_equal(triples, lam, seed=seed)


@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=3)))
def test_every_mix_of_types(dtypes: tuple[torch.dtype, ...]) -> None:
    w, v, g = (normal(3001, j, dtype) for j, dtype in enumerate(dtypes))
    check_equal([(w, v, g)])
    check_equal([(w, v, None)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("n", [CHUNK - 1, CHUNK + 17, 2 * CHUNK + 1])
def test_several_chunks(n: int, dtype: torch.dtype) -> None:
    check_equal([triple(5, 9, dtype), triple(n, dtype=dtype), triple(100, 12, dtype)], seed=n)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("offsets", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (8, 8, 8)])
def test_misaligned(dtype: torch.dtype, offsets: tuple[int, ...]) -> None:
    """Whoever is misaligned; what lies before and after the gradient stays."""
    whole = torch.full((3001 + 16,), 7.0).to(dtype)
    grad = whole[offsets[2] : offsets[2] + 3001]
    grad.copy_(normal(3001, 2))
    outside = [whole[: offsets[2]], whole[offsets[2] + 3001 :]]
    check_equal([(normal(3001, 0, dtype, offsets[0]), normal(3001, 1, dtype, offsets[1]), grad)])
    assert all((x == 7).all() for x in outside)


def test_more_tensors_than_a_launch_takes() -> None:
    """Two launches and more, with the sums in the order of the list, whatever the types in between."""
    sizes = [(7 * i) % 23 for i in range(300)]
    triples = [triple(n, i, FLOATS[i % 4 if i % 10 == 0 else 0]) for i, n in enumerate(sizes)]
    check_equal(triples, seed=1)


def test_many_empty_tensors() -> None:
    empty = triple(0)
    check_equal([empty] * 500 + [triple(3)] + [empty] * 500)
    check_equal([empty] * 3)


def test_not_finite() -> None:
    w = torch.tensor([torch.inf, 1.0, -torch.inf, 3.0] * 9)
    grad = torch.zeros(36)
    assert emulated([(w, torch.zeros(36), grad)], 2.0) == torch.inf
    assert torch.equal(grad, 2 * w)
    w[5] = torch.nan
    grad.zero_()
    assert emulated([(w, torch.zeros(36), grad)], 1.0) != emulated([(w, torch.zeros(36), None)], 1.0)  # NaN
    assert torch.equal(grad.isnan(), w.isnan())


def test_penalty_in_either_type() -> None:
    triples = [triple(20)]
    tensors = [(array(g), array(w), array(v), w.numel()) for w, v, g in triples]
    kernels = emulator.load()
    wide, narrow = (kernels.projection_grad(tensors, 0.3, dtype) for dtype in ("float64", "float32"))
    assert narrow == torch.tensor(wide).float().item() != wide


def test_tensors_larger_than_memory() -> None:
    """Which elements a block does, where their number passes 2^31 and 2^40."""
    numels = [5, 2**31 + 7, CHUNK, 2**40 + 1, 3]
    chunks = [-(-n // CHUNK) for n in numels]
    first = list(itertools.accumulate(chunks, initial=0))
    chunk = emulator.load().projection_chunk
    for tensor, numel in enumerate(numels):
        for i in sorted({0, chunks[tensor] // 2, chunks[tensor] - 1}):
            begin = i * CHUNK
            sum_at = first[tensor] + i
            assert chunk(numels, sum_at) == (tensor, begin, min(CHUNK, numel - begin), sum_at)


@pytest.mark.slow
def test_undefined_behaviour() -> None:
    dtypes = [(a, b, c) for a in FLOATS for b, c in ((a, a), (torch.float32, torch.float64))]
    triples = [tuple(normal(1500 + i, i + j, d) for j, d in enumerate(ds)) for i, ds in enumerate(dtypes)]
    check_equal([*triples, triple(CHUNK + 3), triple(0)], sanitize=True)  # type: ignore[list-item]


# The order of threads ---------------------------------------------------------------------------------------------


def cases() -> list[Triple]:
    """Each way of access, several tiles each, so that both of its buffers are used again."""
    mixed = (normal(9000, 1), normal(9000, 2, torch.float16), normal(9000, 3))
    wide = (normal(5000, 1, torch.float64), normal(5000, 2), normal(5000, 3))
    return [*(triple(9000, dtype=dtype) for dtype in FLOATS), mixed, wide]


@pytest.mark.parametrize("seed", range(6))
def test_every_order_of_threads_gives_the_same_bits(seed: int) -> None:
    check_equal(cases(), seed=seed)


def test_every_barrier_matters() -> None:
    """Left out, each gives a wrong sum for some order of threads."""
    kernels = emulator.load()
    kernels.forget_barriers()
    triples = cases() + [
        triple(1, i) for i in range(600)
    ]  # more sums than a buffer of the second kernel holds
    expected = emulated(copies(triples), 0.3)
    seen = [barrier for barrier in kernels.barriers_seen() if barrier.startswith("projection_grad.cu")]
    assert len(seen) == 2
    try:
        for barrier in seen:
            kernels.leave_out(barrier)
            assert any(emulated(copies(triples), 0.3, seed=seed) != expected for seed in range(4)), barrier
    finally:
        kernels.leave_out("")
