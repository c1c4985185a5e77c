"""`AlternatingProjections`: its state, pools of embeddings, and what it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from ccp_run import CLASSES, DIM, FEATURES, POOL, Indices, Run, assert_same, outcomes, three_states
from helpers import one_thread  # noqa: F401
from torch import Tensor, nn

from ccp_fast import losses
from ccp_fast.ccp import AlternatingProjections, SubProblem, embed_pool

# ---- state


def leaves(state: Any) -> Iterator[Any]:
    if isinstance(state, dict):
        assert all(isinstance(key, str) for key in state)
        for value in state.values():
            yield from leaves(value)
    elif isinstance(state, list):
        for value in state:
            yield from leaves(value)
    else:
        yield state


def test_state_is_tensors_and_plain_values() -> None:
    run = Run(patience=1)
    for metrics in ((), (0.5,), (0.4,), (0.4,)):
        run.step()
        outcomes(run, *metrics)
        found = list(leaves(run.ccp.state_dict()))
        tensors = [leaf for leaf in found if isinstance(leaf, Tensor)]
        json.dumps([leaf for leaf in found if not isinstance(leaf, Tensor)], allow_nan=False)
        memory = [tensor.untyped_storage().data_ptr() for tensor in tensors]
        assert len(set(memory)) == len(memory)


def saved(state: Any) -> Any:
    """Written and read back, in the mode of torch that reads no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def play(run: Run, steps: range) -> list[str]:
    """Train and evaluate after every second step; the metric rises and falls so that sub-problems end."""
    told = []
    for step in steps:
        run.step()
        if step % 2:
            told.append(run.ccp.update([0.3, 0.5, 0.4, 0.4, 0.2, 0.6, 0.1][step // 2 % 7]))
    return told


OPTIONS: dict[str, dict[str, Any]] = {
    "patience": {"patience": 2},
    "warm start": {"patience": 2, "warm_start": 7},
    "schedule": {"project_every": 5},
    "reload": {"patience": 1, "reload_best": True},
    "decoupled": {"patience": 2, "mode": "decoupled"},
}


@pytest.mark.parametrize("cut", [1, 4, 8, 15, 22])
@pytest.mark.parametrize("name", OPTIONS)
def test_resumed_run_equals_an_unbroken_one(name: str, cut: int) -> None:
    unbroken = Run(**OPTIONS[name])
    told = play(unbroken, range(30))
    assert unbroken.ccp.subproblem >= 2

    first = Run(**OPTIONS[name])
    told_twice = play(first, range(cut))
    parts = ("ccp", "model", "loss", "optimizer")
    states = saved({part: getattr(first, part).state_dict() for part in parts})
    second = Run(seed=1, **OPTIONS[name])
    for part in parts:
        getattr(second, part).load_state_dict(states[part])
    told_twice += play(second, range(cut, 30))

    assert told_twice == told
    assert_same(second.weights(), unbroken.weights())
    assert_same(second.anchor(), unbroken.anchor())
    timeless = [
        [{**vars(r), "milliseconds": 0, "pool_milliseconds": 0} for r in run.ccp.history]
        for run in (second, unbroken)
    ]
    assert timeless[0] == timeless[1]
    assert second.ccp.restore_best() == unbroken.ccp.restore_best()
    assert_same(second.weights(), unbroken.weights())


def test_state_of_another_model_is_refused() -> None:
    run, other = Run(), Run(wrap=True)
    three_states(run)
    anchor = other.anchor()
    with pytest.raises(
        ValueError, match=r"best: expected the tensors of this model, got \['network\.0\.bias"
    ):
        other.ccp.load_state_dict(run.ccp.state_dict())
    assert_same(other.anchor(), anchor)
    assert other.ccp.best_metric is None

    with pytest.raises(ValueError, match="state: expected every key of `state_dict`, got none called steps"):
        other.ccp.load_state_dict(
            {name: value for name, value in run.ccp.state_dict().items() if name != "steps"}
        )
    small = losses.ContrastiveLoss(num_classes=CLASSES, dim=DIM)
    ccp = AlternatingProjections(run.model, small, pool_size=POOL, lam=0.1)
    with pytest.raises(ValueError, match=r"best\.proxies: expected shape \[5, 1, 4\], got \[5, 2, 4\]"):
        ccp.load_state_dict(run.ccp.state_dict())


# ---- pool


def test_embed_pool_is_in_eval_mode_and_puts_modes_back() -> None:
    run = Run()
    run.model[1].eval()  # a frozen BatchNorm in a model that trains
    modes = [module.training for module in run.model.modules()]
    before = run.weights()
    samples = torch.randn(20, FEATURES)
    pool = Indices(torch.tensor([3, 3, 19, 0, 7]), torch.tensor([0, 2, 5]))
    whole, parts = (embed_pool(run.model, lambda i: samples[i], pool, size) for size in (100, 2))
    assert [module.training for module in run.model.modules()] == modes
    assert_same(run.weights(), before)
    assert not whole.embeddings.requires_grad
    torch.testing.assert_close(whole.embeddings, parts.embeddings)
    torch.testing.assert_close(whole.embeddings, run.model.eval()(samples[pool.indices]).detach())
    assert torch.equal(whole.offsets, pool.offsets)


def test_embed_pool_puts_modes_back_after_an_error() -> None:
    run = Run()
    with pytest.raises(IndexError):
        embed_pool(
            run.model, lambda i: torch.zeros(1, FEATURES)[i], Indices(torch.tensor([5]), torch.tensor([0, 1]))
        )
    assert all(module.training for module in run.model.modules())


# ---- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_size": 1}, "pool_size: expected at least proxies_per_class = 2, got 1"),
        ({"patience": 0}, "patience: expected at least 1, got 0"),
        ({"stop_patience": 0}, "stop_patience: expected at least 1, got 0"),
        ({"project_every": 0}, "project_every: expected at least 1, got 0"),
        ({"lam": -1.0}, "lam: expected at least 0, got -1.0"),
        ({"lam": float("nan")}, "lam: expected at least 0, got nan"),
        ({"warm_start": -1}, "warm_start: expected at least 0, got -1"),
        ({"normalize": "cube"}, "normalize: expected .*, got 'cube'"),
        ({"monitor": "high"}, "monitor: expected .*, got 'high'"),
        ({"mode": "loose"}, "mode: expected .*, got 'loose'"),
    ],
)
def test_refuses_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run(**options)


def test_refuses_a_loss_without_proxies() -> None:
    with pytest.raises(ValueError, match="loss: expected one that owns proxies"):
        AlternatingProjections(nn.Linear(2, 2), losses.ContrastiveLoss(), pool_size=POOL, lam=0.1)


def test_attaches_once() -> None:
    run = Run()
    with pytest.raises(RuntimeError, match="attach: expected one call"):
        run.ccp.attach(run.optimizer)


def test_record_survives_plain_values() -> None:
    run = Run()
    record = run.ccp.project(run.embed)
    assert SubProblem(**json.loads(json.dumps(vars(record)))) == record
