"""The fused proximal gradient, and the hook that adds it to an optimizer."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ccp_fast.projection import Projection, projection_grad_
from ccp_fast.reference import projection_grad_ as plain

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OP = torch.ops.ccp_fast.projection_grad_.default


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


# The function -----------------------------------------------------------------------------------------------

shapes = st.lists(st.lists(st.integers(0, 40), max_size=3), min_size=1, max_size=5)


@settings(max_examples=120, deadline=None)
@given(shapes=shapes, dtypes=st.lists(st.sampled_from(FLOATS), min_size=15, max_size=15), lam=st.floats(0, 3))
def test_equals_float64(shapes: list[list[int]], dtypes: list[torch.dtype], lam: float) -> None:
    """Any mix of dtypes: the result is that of float64, rounded to what holds it."""
    params, previous, grads = (
        [normal(*shape, seed=3 * i + j, dtype=dtypes[3 * i + j]) for i, shape in enumerate(shapes)]
        for j in range(3)
    )
    triples = [[x.clone().double() for x in triple] for triple in zip(params, previous, grads, strict=True)]
    penalty = projection_grad_(params, previous, lam, grads)

    squares = sum((w - v).square().sum() for w, v, _ in triples)
    torch.testing.assert_close(penalty.double(), 0.5 * lam * squares, rtol=1e-7, atol=1e-30)
    assert penalty.dtype == (
        torch.float64 if any(p.dtype == torch.float64 for p in params) else torch.float32
    )
    for (w, v, g), ours in zip(triples, grads, strict=True):
        exact = g + lam * (w - v)
        # rounded to the gradient's dtype once, and to float32 thrice on the way
        on_the_way = 2**-23 * (g.abs() + lam * (w.abs() + v.abs()))
        assert ((ours - exact).abs() <= torch.finfo(ours.dtype).eps * exact.abs() + on_the_way + 2**-25).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_equals_reference(dtype: torch.dtype) -> None:
    sizes = [1, 15, 16, 17, 1024, 40_000]
    params, previous, grads = ([normal(n, seed=n + j, dtype=dtype) for n in sizes] for j in range(3))
    theirs = [g.clone() for g in grads]
    expected = plain(params, previous, 0.3, theirs)
    torch.testing.assert_close(projection_grad_(params, previous, 0.3, grads), expected)
    for ours, other in zip(grads, theirs, strict=True):  # the reference rounds lam·(w − v) and then the sum
        accuracy = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, other, rtol=accuracy, atol=accuracy)


def test_defaults_to_the_gradients_of_the_parameters() -> None:
    params = [nn.Parameter(normal(5)), nn.Parameter(normal(4, seed=1))]
    params[0].grad = torch.ones(5)
    previous = [torch.zeros(5), torch.zeros(4)]
    version = params[0].grad._version
    penalty = projection_grad_(params, previous, 2.0)
    torch.testing.assert_close(params[0].grad, 1 + 2 * params[0].detach())
    assert params[0].grad._version > version
    assert params[1].grad is None
    # without a gradient a parameter still counts in the penalty
    torch.testing.assert_close(penalty, sum(p.detach().square().sum() for p in params))
    assert not penalty.requires_grad


def test_parameters_without_a_gradient_in_between() -> None:
    params = [normal(3, seed=i) for i in range(4)]
    zeros = [torch.zeros(3) for _ in params]
    grads = [None, torch.zeros(3), None, torch.zeros(3)]
    projection_grad_(params, zeros, 1.0, grads)
    assert torch.equal(grads[1], params[1])
    assert torch.equal(grads[3], params[3])


def layouts() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Parameter, previous, gradient: zeros but for the first, in memory formats alike and unlike."""
    conv = normal(6, 4, 3, 3)
    last = conv.to(memory_format=torch.channels_last)
    matrix = normal(5, 7)
    return [
        (last, torch.zeros_like(last), torch.zeros_like(last)),
        (last, torch.zeros(6, 4, 3, 3), torch.zeros_like(last)),
        (last, torch.zeros_like(last), torch.zeros(6, 4, 3, 3)),
        (conv, torch.zeros(6, 4, 3, 3), torch.zeros_like(last)),
        (matrix.t(), torch.zeros(5, 7).t(), torch.zeros(5, 7).t()),
        (matrix, torch.zeros(5, 7), torch.zeros(10, 14)[::2, ::2]),
        (normal(10, 14)[::2, 1::2], torch.zeros(5, 7), torch.zeros(5, 7)),
        (normal(10, 14)[::2, 1::2], torch.zeros(10, 14)[::2, 1::2], torch.zeros(10, 14)[::2, 1::2]),
        (normal(1, 7).expand(5, 7), torch.zeros(1, 1).expand(5, 7), torch.zeros(5, 7)),
        (normal(5, 1, 7), torch.zeros(5, 1, 7), torch.zeros(7, 5).t()[:, None]),
    ]


@pytest.mark.parametrize("case", range(len(layouts())))
def test_memory_formats(case: int) -> None:
    param, previous, grad = layouts()[case]
    base = grad if grad._base is None else grad._base
    untouched = base.numel() - grad.numel()
    penalty = projection_grad_([param], [previous], 2.0, [grad])
    torch.testing.assert_close(grad, 2 * param)
    torch.testing.assert_close(penalty, param.square().sum())
    assert int((base == 0).sum()) == untouched


def test_not_finite_weights_pass_through() -> None:
    param = torch.tensor([math.inf, math.nan, 1.0])
    grad = torch.zeros(3)
    penalty = projection_grad_([param], [torch.zeros(3)], 1.0, [grad])
    torch.testing.assert_close(grad, param, equal_nan=True)
    assert penalty.isnan()


def test_every_number_of_threads_gives_the_same_bits() -> None:
    sizes = [100_001, 3, 0, 65_536, 70_000]
    params, previous = ([normal(n, seed=i + j) for i, n in enumerate(sizes)] for j in (0, 9))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        grads = [torch.ones(n) for n in sizes]
        results.append([projection_grad_(params, previous, 0.1, grads), *grads])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_without_parameters_and_without_strength() -> None:
    assert projection_grad_([], [], 1.0, []).item() == 0
    grad = torch.ones(2)
    penalty = projection_grad_([torch.full((2,), math.nan)], [torch.zeros(2)], 0.0, [grad])
    assert (penalty.item(), grad.tolist()) == (0, [1, 1])


@pytest.mark.parametrize("lam", [-1.0, math.inf, math.nan, "1", None])
def test_lam_out_of_range(lam: object) -> None:
    with pytest.raises(ValueError, match="lam: expected a finite number of at least 0, got"):
        projection_grad_([torch.zeros(2)], [torch.zeros(2)], lam, [None])


def test_lists_of_different_lengths() -> None:
    w = torch.zeros(2)
    with pytest.raises(ValueError, match="params, previous, grads: expected equal lengths, got 1, 2, 1"):
        projection_grad_([w], [w, w], 1.0, [w])


W = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("param", "previous", "grad", "message"),
    [
        (W, W[0], W, r"previous\[1\]: expected shape \[2, 3\] on cpu like params\[1\], got \[3\] on cpu"),
        (W, W, W.t(), r"grads\[1\]: expected shape \[2, 3\] on cpu like params\[1\], got \[3, 2\] on cpu"),
        (W, W, W.to("meta"), r"grads\[1\]: expected .* on cpu .* on meta"),
        (W, W.to("meta"), W, r"previous\[1\]: expected .* on cpu .* on meta"),
        (W.int(), W, W, r"params\[1\]: expected .* float32, .*got torch.int32"),
        (W, W.cfloat(), W, r"previous\[1\]: expected .* float32, .*got torch.complex64"),
        (W, W, W.to_sparse(), r"grads\[1\]: expected a dense tensor .* layout torch.sparse_coo"),
    ],
)
def test_tensors_that_do_not_fit(param: Tensor, previous: Tensor, grad: Tensor, message: str) -> None:
    first = torch.zeros(2)
    with pytest.raises(ValueError, match=message):
        projection_grad_([torch.ones(2), param], [torch.zeros(2), previous], 1.0, [first, grad])
    assert first.tolist() == [0, 0]


def test_a_gradient_that_shares_memory_with_itself() -> None:
    with pytest.raises(RuntimeError, match=r"grads\[0\]: expected elements of their own"):
        projection_grad_([W], [W], 1.0, [torch.ones(3).expand(2, 3)])


@pytest.mark.parametrize(
    ("grads", "params", "previous", "message"),
    [
        ([W], [W], [], "got 1, 1 and 0"),
        ([W, W], [W], [W], "got 2, 1 and 1"),
        ([W], [W], [W[0]], r"previous\[0\]: expected shape \[2, 3\] like params\[0\], got \[3\]"),
        ([W[0]], [W], [W], r"grads\[0\]: expected shape \[2, 3\] like params\[0\], got \[3\]"),
        ([W.bool()], [W], [W], r"grads\[0\]: expected float32"),
    ],
)
def test_the_operator_checks_too(grads: list, params: list, previous: list, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        OP(grads, params, previous, 1.0)


def test_opcheck() -> None:
    for dtype in FLOATS:
        params, previous, grads = ([normal(n, seed=n + j, dtype=dtype) for n in (3, 0, 20)] for j in range(3))
        torch.library.opcheck(OP, (grads[:2], params, previous, 0.5))


def test_compile_without_a_graph_break() -> None:
    def step(params: list[Tensor], previous: list[Tensor], grads: list[Tensor | None]) -> Tensor:
        return 2 * projection_grad_(params, previous, 0.1, grads)

    params, previous = ([normal(n, seed=n + j) for n in (3, 20)] for j in range(2))
    grads, theirs = [torch.ones(3), None], [torch.ones(3), None]
    expected = step(params, previous, theirs)
    torch.testing.assert_close(
        torch.compile(step, fullgraph=True, backend="aot_eager")(params, previous, grads), expected
    )
    torch.testing.assert_close(grads[0], theirs[0])


# The hook ---------------------------------------------------------------------------------------------------


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    model[0].bias.requires_grad_(False)
    return model


def backward(model: nn.Module, step: int) -> None:
    model.zero_grad()
    model(normal(10, 6, seed=step)).square().mean().backward()


def trainable(model: nn.Module) -> list[Tensor]:
    return [p for p in model.parameters() if p.requires_grad]


OPTIMIZERS = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda params: torch.optim.Adam(params, lr=0.01, weight_decay=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_coupled_is_a_term_of_the_loss(optimizer: str) -> None:
    """The same steps as with the penalty added to the loss and differentiated."""
    ours, theirs = network().double(), network().double()
    previous = [p.detach().clone() for p in trainable(theirs)]
    our_optimizer, their_optimizer = (OPTIMIZERS[optimizer](trainable(m)) for m in (ours, theirs))
    projection = Projection(ours, 0.3).attach(our_optimizer)
    for step in range(6):
        data = normal(10, 6, seed=step).double()
        penalty = 0.15 * sum((p - q).square().sum() for p, q in zip(trainable(theirs), previous, strict=True))
        their_optimizer.zero_grad()
        (theirs(data).square().mean() + penalty).backward()
        their_optimizer.step()
        our_optimizer.zero_grad()
        ours(data).square().mean().backward()
        our_optimizer.step()
        torch.testing.assert_close(projection.penalty, penalty.detach())
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_decoupled_moves_after_the_optimizer_with_each_groups_rate() -> None:
    ours, theirs = network(), network()
    rates = (0.01, 0.002)

    def groups(model: nn.Module) -> list[dict]:
        params = trainable(model)
        return [{"params": params[:1], "lr": rates[0]}, {"params": params[1:], "lr": rates[1]}]

    our_optimizer, their_optimizer = torch.optim.Adam(groups(ours)), torch.optim.Adam(groups(theirs))
    projection = Projection(ours, 5.0, mode="decoupled").attach(our_optimizer)
    previous = [p.detach().clone() for p in trainable(theirs)]
    for step in range(4):
        backward(ours, step)
        our_optimizer.step()
        backward(theirs, step)
        their_optimizer.step()
        penalty = 0.0
        with torch.no_grad():
            for i, (p, q) in enumerate(zip(trainable(theirs), previous, strict=True)):
                penalty += 2.5 * (p - q).square().sum()
                p -= rates[i > 0] * 5.0 * (p - q)
        torch.testing.assert_close(projection.penalty, penalty)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_frozen_parameters_and_buffers_are_left_alone() -> None:
    assert list(Projection(network(), 1.0).state_dict()) == [
        "previous.0.weight",
        "previous.1.weight",
        "previous.1.bias",
        "previous.3.weight",
        "previous.3.bias",
        "lam",
        "mode",
    ]


def test_two_optimizers_share_the_work() -> None:
    model = network()
    params = trainable(model)
    proxies = nn.Parameter(normal(4, 3))
    first = torch.optim.SGD([*params[:2], proxies], lr=0.1)
    second = torch.optim.SGD(params[2:], lr=0.1)
    projection = Projection(model, 1.0).attach(first).attach(second)
    projection.snapshot_([torch.zeros_like(p) for p in params])
    for p in [*params, proxies]:
        p.grad = torch.zeros_like(p)
    total = 0.5 * sum(p.detach().square().sum() for p in params)
    first.step()
    second.step()
    torch.testing.assert_close(projection.penalty, total)
    assert not proxies.grad.any()
    for p in params:  # w − 0.1·w has been stepped to
        torch.testing.assert_close(p.detach(), 0.9 * p.grad)


def test_by_hand_before_clipping() -> None:
    model = network()
    projection = Projection(model, 10.0)
    projection.snapshot_({name: torch.zeros_like(p) for name, p in model.named_parameters()})
    backward(model, 0)
    plain_grads = [p.grad.clone() for p in trainable(model)]
    penalty = projection.step_()
    assert penalty is projection.penalty
    for p, g in zip(trainable(model), plain_grads, strict=True):
        torch.testing.assert_close(p.grad, g + 10 * p.detach())
    torch.testing.assert_close(penalty, 5 * sum(p.detach().square().sum() for p in trainable(model)))

    weights = [p.detach().clone() for p in trainable(model)]
    decoupled = Projection(model, 10.0, mode="decoupled")
    decoupled.snapshot_([torch.zeros_like(w) for w in weights])
    version = model[3].weight._version
    decoupled.step_(lr=0.01)
    assert model[3].weight._version > version
    for p, w in zip(trainable(model), weights, strict=True):
        torch.testing.assert_close(p.detach(), 0.9 * w)


def test_no_strength_no_work() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    projection = Projection(model, 0.0).attach(optimizer)
    projection.snapshot_([torch.full_like(p, math.nan) for p in trainable(model)])
    backward(model, 0)
    optimizer.step()
    assert projection.penalty.item() == 0
    assert all(p.isfinite().all() for p in model.parameters())
    projection.lam = 1
    optimizer.step()
    assert projection.penalty.isnan()


def test_detach_and_snapshot() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    projection = Projection(model, 1.0).attach(optimizer)
    backward(model, 0)
    optimizer.step()
    assert projection.penalty.item() == 0  # still at the snapshot when the gradient was taken
    optimizer.step()
    assert projection.penalty.item() > 0
    projection.snapshot_()
    optimizer.step()
    assert projection.penalty.item() == 0
    projection.detach()
    optimizer.step()
    assert projection.penalty.item() == 0
    before = [p.detach().clone() for p in model.parameters()]
    model.zero_grad()
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
def test_state_goes_through_safetensors(mode: str, tmp_path) -> None:
    """A run that is interrupted and resumed takes the same steps."""
    model = network()
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    projection = Projection(model, 0.25, mode=mode).attach(optimizer)
    for step in range(3):
        backward(model, step)
        optimizer.step()
    state = projection.state_dict()
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    save_file(tensors, tmp_path / "projection.safetensors")
    (tmp_path / "projection.json").write_text(
        json.dumps({k: v for k, v in state.items() if k not in tensors})
    )

    resumed = copy.deepcopy(model)
    again = torch.optim.SGD(trainable(resumed), lr=0.1)
    loaded = Projection(resumed, 0.0, mode=mode).attach(again)
    loaded.load_state_dict(
        load_file(tmp_path / "projection.safetensors")
        | json.loads((tmp_path / "projection.json").read_text())
    )
    assert loaded.lam == 0.25
    for net, opt in ((model, optimizer), (resumed, again)):
        backward(net, 7)
        opt.step()
    assert torch.equal(loaded.penalty, projection.penalty)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), resumed.parameters(), strict=True))


def test_states_that_do_not_fit_change_nothing() -> None:
    projection = Projection(network(), 1.0)
    good = {k: v.clone() if isinstance(v, Tensor) else v for k, v in projection.state_dict().items()}
    other = {k: v + 1 if isinstance(v, Tensor) else v for k, v in good.items()}
    bad = [
        (other | {"mode": "decoupled"}, "state: expected mode \"coupled\", got 'decoupled'"),
        ({k: v for k, v in other.items() if k != "previous.3.bias"}, "expected the parameter 3.bias"),
        (other | {"previous.3.bias": torch.zeros(9)}, r"expected 3.bias of shape \[3\], got \[9\]"),
        (other | {"previous.4.bias": torch.zeros(9)}, "4.bias is no parameter of this projection"),
        (other | {"lam": -1.0}, "lam: expected"),
        ({k: v for k, v in other.items() if k != "lam"}, "lam: expected"),
    ]
    for state, message in bad:
        with pytest.raises(ValueError, match=message):
            projection.load_state_dict(state)
        for key, value in projection.state_dict().items():
            assert torch.equal(value, good[key]) if isinstance(value, Tensor) else value == good[key]
    with pytest.raises(ValueError, match="weights: expected 5 tensors, got 1"):
        projection.snapshot_([torch.zeros(3)])
    with pytest.raises(ValueError, match=r"weights: expected the parameter 0\.weight, which is missing"):
        projection.snapshot_({})


def test_what_cannot_be_attached() -> None:
    model = network()
    projection = Projection(model, 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer: expected one that holds parameters of this projection"):
        projection.attach(torch.optim.SGD(network().parameters(), lr=0.1))
    projection.attach(optimizer)
    with pytest.raises(ValueError, match="optimizer: expected one that is not attached yet"):
        projection.attach(optimizer)
    with pytest.raises(RuntimeError, match="closure"):
        optimizer.step(lambda: torch.zeros(()))
    with pytest.raises(ValueError, match="model_or_params: expected at least one parameter"):
        Projection([], 1.0)
    with pytest.raises(ValueError, match="mode: expected"):
        Projection(model, 1.0, mode="proximal")
    with pytest.raises(ValueError, match="lr: expected None"):
        projection.step_(lr=0.1)
    with pytest.raises(ValueError, match="lr: expected a learning rate"):
        Projection(model, 1.0, mode="decoupled").step_()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("mode", ["coupled", "decoupled"])
def test_scaled_gradients(mode: str, fused: bool) -> None:
    """GradScaler multiplies the loss by 2^16, a fused optimizer unscales late: the pull is the same."""
    ours, theirs = network(), network()
    optimizers = [torch.optim.Adam(trainable(m), lr=0.01, fused=fused) for m in (ours, theirs)]
    projections = [
        Projection(m, 0.3, mode=mode).attach(o) for m, o in zip((ours, theirs), optimizers, strict=True)
    ]
    scaler = torch.amp.GradScaler("cpu")
    for step in range(3):
        backward(theirs, step)
        optimizers[1].step()
        ours.zero_grad()
        scaler.scale(ours(normal(10, 6, seed=step)).square().mean()).backward()
        scaler.step(optimizers[0])
        scaler.update()
        torch.testing.assert_close(projections[0].penalty, projections[1].penalty)
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)

    before = [p.detach().clone() for p in ours.parameters()]
    scaler.scale(ours(normal(10, 6)).sum() * math.inf).backward()
    scaler.step(optimizers[0])  # skipped
    assert all(torch.equal(p, q) for p, q in zip(ours.parameters(), before, strict=True))


def test_sharded_parameters_work_on_their_local_part(tmp_path) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        param = nn.Parameter(distribute_tensor(normal(6, 4), mesh, [Shard(0)]))
        optimizer = torch.optim.SGD([param], lr=0.1)
        projection = Projection([param], 2.0).attach(optimizer)
        projection.snapshot_([torch.zeros_like(param)])
        assert isinstance(projection.state_dict()["previous.0"], DTensor)
        param.grad = torch.zeros_like(param)
        optimizer.step()
        torch.testing.assert_close(projection.penalty, normal(6, 4).square().sum())
        torch.testing.assert_close(param.detach().to_local(), 0.8 * normal(6, 4))
    finally:
        dist.destroy_process_group()
