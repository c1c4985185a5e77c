"""SoftTriple's regulariser: the CPU operator and the emulated CUDA kernels against the dense reference."""

from __future__ import annotations

import math
from collections.abc import Callable

import emulator
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ccp_fast import reference
from ccp_fast.ops.centre_spread import _backward, _forward, centre_spread

SHAPES = [(1, 2, 1), (7, 4, 33), (150, 3, 130), (5, 32, 17), (3, 1, 8), (0, 4, 8), (4, 0, 8), (4, 3, 0)]
HALVES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


def centres(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def on_cpu(proxies: Tensor, function: Callable[[Tensor], Tensor] = centre_spread) -> tuple[Tensor, Tensor]:
    leaf = proxies.clone().requires_grad_()
    value = function(leaf)
    return value.detach(), torch.autograd.grad(3 * value, leaf)[0]


def emulated(proxies: Tensor, *, seed: int = 0, sanitize: bool = False) -> tuple[Tensor, Tensor]:
    """The gradient times 3, as above."""
    module = emulator.load(sanitize=sanitize)
    module.set_seed(seed)
    half = proxies.dtype in HALVES
    array = (proxies.view(torch.uint16) if half else proxies).numpy()
    name = HALVES.get(proxies.dtype, "float32")
    value = torch.tensor(module.centre_spread(array, name))
    gradient = torch.from_numpy(np.asarray(module.centre_spread_backward(3.0, array, name)))
    return value, gradient.view(proxies.dtype) if half else gradient


DEVICES = {"cpu": on_cpu, "emulated": emulated}
every_device = pytest.mark.parametrize("run", DEVICES.values(), ids=list(DEVICES))


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_reference_in_double(shape: tuple[int, int, int]) -> None:
    for ours, truth in zip(
        on_cpu(centres(*shape)), on_cpu(centres(*shape), reference.centre_spread), strict=True
    ):
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-13)


@every_device
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_error_is_within_eagers_own(
    run: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    low = centres(*shape, dtype=dtype)
    ours = run(low)
    eager = on_cpu(low, reference.centre_spread)
    truth = on_cpu(low.double(), reference.centre_spread)
    assert ours[0].dtype == torch.float32
    assert ours[1].dtype == dtype
    for o, e, t in zip(ours, eager, truth, strict=True):
        scale = t.abs().max() if t.numel() else torch.zeros(())
        budget = 2 * (e.double() - t).abs().amax() if t.numel() else 0.0
        assert (o.double() - t).abs().sum() == 0 or (
            (o.double() - t).abs().max() <= budget + 8 * torch.finfo(o.dtype).eps * scale
        )


@every_device
def test_the_value_is_half_the_mean_distance(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Against the formula of the paper, √(2 − 2·w·w')."""
    proxies = centres(9, 3, 20, dtype=torch.float32)
    w = torch.nn.functional.normalize(proxies.double(), dim=2)
    pairs = [(2 - 2 * (w[:, a] * w[:, b]).sum(1)).sqrt() for a, b in ((0, 1), (0, 2), (1, 2))]
    assert run(proxies)[0] == pytest.approx(float(torch.stack(pairs).mean()) / 2, rel=1e-6)


@every_device
def test_coinciding_centres_are_finite_and_at_rest(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """ccp-dml's gradient is NaN there, and the official code adds 1e-5 under the root."""
    proxies = centres(4, 1, 10, dtype=torch.float32).expand(4, 3, 10).contiguous()
    value, gradient = run(proxies)
    assert value == 0
    assert not gradient.any()
    proxies[0, 2] += 1
    value, gradient = run(proxies)
    assert value > 0
    assert gradient[0].isfinite().all()
    assert gradient[0, 2].any()
    assert not gradient[1:].any()


@every_device
def test_close_centres_have_exact_distances(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """√(2 − 2·w·w') has no correct digit at 1e-4."""
    near = torch.zeros(1, 2, 8)
    near[0, :, 0] = 1
    near[0, 1, 1] = 1e-4
    assert run(near)[0] == pytest.approx(2 * math.sin(math.atan(1e-4) / 2) / 2, rel=1e-6)


@every_device
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e-7, 1e19, 1e38])
def test_finite_at_every_size(run: Callable[..., tuple[Tensor, Tensor]], size: float) -> None:
    proxies = (torch.nn.functional.normalize(centres(3, 4, 6), dim=2) * size).float()
    value, gradient = run(proxies)
    truth = float(reference.centre_spread(proxies.double())) if size > 1e-12 else 0.0
    assert value == pytest.approx(truth, rel=1e-5)
    assert gradient.isfinite().all()


@every_device
def test_nan_is_not_swallowed(run: Callable[..., tuple[Tensor, Tensor]]) -> None:
    proxies = centres(3, 4, 6, dtype=torch.float32)
    proxies[1, 2, 3] = torch.nan
    value, gradient = run(proxies)
    assert value.isnan()
    assert gradient[1].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


@given(st.integers(0, 300), st.integers(1, 32), st.integers(1, 70), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_any_shape(classes: int, size: int, dim: int, seed: int) -> None:
    proxies = centres(classes, size, dim, seed=seed)
    for ours, truth in zip(on_cpu(proxies), on_cpu(proxies, reference.centre_spread), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-10)


def test_same_bits_for_any_number_of_threads_and_order_of_warps() -> None:
    proxies = centres(1000, 4, 40, dtype=torch.float32)
    before = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(on_cpu(proxies))
    finally:
        torch.set_num_threads(before)
    orders = [emulated(proxies[:100], seed=seed) for seed in range(3)]
    for first, *others in (results, orders):
        for other in others:
            assert torch.equal(other[0], first[0])
            assert torch.equal(other[1], first[1])


def test_every_barrier_is_needed() -> None:
    proxies = centres(100, 3, 12, dtype=torch.float32)
    right = emulated(proxies)

    def differs(seed: int) -> bool:
        return any(not torch.equal(a, b) for a, b in zip(right, emulated(proxies, seed=seed), strict=True))

    assert not emulator.unneeded_barriers(differs)


def test_as_a_citizen_of_pytorch() -> None:
    proxies = centres(5, 3, 4).requires_grad_()
    torch.library.opcheck(_forward, (proxies,))
    torch.library.opcheck(_backward, (torch.ones((), dtype=torch.float64), proxies.detach()))
    assert torch.autograd.gradcheck(centre_spread, proxies)
    assert torch.autograd.gradgradcheck(centre_spread, proxies)
    transposed = proxies.detach().transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(centre_spread(transposed), centre_spread(proxies))


def test_refuses_what_does_not_fit_a_warp() -> None:
    with pytest.raises(
        RuntimeError, match=r"proxies: expected shape \[C, K, D\] with K at most 32, got \[2, 33, 4\]"
    ):
        centre_spread(torch.zeros(2, 33, 4))


@pytest.mark.slow
def test_no_undefined_behaviour() -> None:
    emulated(centres(7, 4, 33, dtype=torch.float32), sanitize=True)
