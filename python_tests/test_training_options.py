"""Gradient clipping, averaged weights, precision and compilation, in steps of the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from training_runs import QUIET, tiny_data  # noqa: F401

pytest.importorskip("safetensors")

from ccp_fast.evaluation import retrieval
from ccp_fast.training import measure, protocols, trainer
from ccp_fast.training.learner import Learner
from ccp_fast.training.report import write_run_report
from ccp_fast.training.run_folder import RunFolder


def learner(*settings: str) -> Learner:
    return Learner(tiny_training.config(*settings), tiny_training.images("train"))


def weights(one: Learner) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in one.model.state_dict().items()}


@pytest.mark.parametrize("method", ["ccp", "plain"])
def test_clipping_bounds_the_norm_of_all_gradients_with_the_proximal_term(method: str) -> None:
    settings = [
        *(f"method={method}", "loss.name=proxy_anchor", "ccp.lam=100"),
        *("optimizer.lr=0.05", "optimizer.proxies=same"),
    ]
    free, clipped = learner(*settings), learner(*settings, "optimizer.clip_norm=0.25")
    norms: dict[str, list[float]] = {"free": [], "clipped": []}
    for name, one in (("free", free), ("clipped", clipped)):

        def seen(optimizer: Any, *_: Any, to: list[float] = norms[name]) -> None:
            gradients = [
                p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            to.append(float(torch.cat([g.flatten() for g in gradients]).norm()))

        one.optimizer.register_step_pre_hook(seen)
        for _ in range(12):
            one.train_step()
    assert min(norms["free"]) > 0.25
    assert norms["clipped"] == pytest.approx([0.25] * 12, rel=1e-4)


@pytest.mark.parametrize("name", ["adam", "radam"])
def test_betas_are_the_optimizers(name: str) -> None:
    one = learner("optimizer.betas=[0.8, 0.99]", f"optimizer.name={name}")
    assert {group["betas"] for group in one.optimizer.param_groups} == {(0.8, 0.99)}


def test_the_average_is_exponential_and_is_what_is_evaluated() -> None:
    plain, averaged = learner("method=plain"), learner("method=plain", "optimizer.ema_decay=0.8")
    expected: dict[str, torch.Tensor] = {}
    for step in range(6):
        assert plain.train_step() == averaged.train_step()  # training itself does not change
        for name, value in weights(plain).items():
            if value.is_floating_point():
                expected[name] = value if step == 0 else 0.8 * expected[name] + 0.2 * value
    for name, value in expected.items():
        torch.testing.assert_close(averaged.network.state_dict()[name], value)
        assert torch.equal(averaged.model.state_dict()[name], plain.model.state_dict()[name])
    images = tiny_training.images("test")
    assert not torch.equal(averaged.embed(images), plain.embed(images))
    plain.model.load_state_dict(averaged.network.state_dict())
    assert torch.equal(averaged.embed(images), plain.embed(images))


def test_the_final_numbers_are_those_of_the_average_at_the_best_step(tmp_path: Path) -> None:
    summary = trainer.train(tiny_training.config("optimizer.ema_decay=0.9"), tmp_path / "run", QUIET)
    run = RunFolder.open(tmp_path / "run")
    one = Learner(run.config, tiny_training.images("train"))
    one.load_weights(run.at(summary["best_step"]).state["learner"])
    test = tiny_training.images("test")
    expected = retrieval(one.embed(test), test.labels, metrics=("map_at_r",), normalize="ball")
    assert summary["test"]["map_at_r"] == expected["map_at_r"]


def test_bf16_trains_close_to_fp32() -> None:
    full, half = learner("method=plain"), learner("method=plain", "compute.precision=bf16")
    assert [half.train_step() for _ in range(4)] == pytest.approx(
        [full.train_step() for _ in range(4)], rel=0.05
    )
    assert all(value.dtype in (torch.float32, torch.int64) for value in half.model.state_dict().values())


@pytest.mark.slow
def test_a_compiled_network_trains_as_one_that_is_not() -> None:
    plain, compiled = learner(), learner("compute.compile=true", "optimizer.ema_decay=0.9")
    assert [compiled.train_step() for _ in range(8)] == pytest.approx(
        [plain.train_step() for _ in range(8)], rel=1e-3
    )
    assert compiled.state_dict()["model"].keys() == plain.state_dict()["model"].keys()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", ["ccp", "xbm", "alternating", "intra-batch"])
def test_a_gpu_trains_and_goes_on_where_it_was(method: str, tmp_path: Path) -> None:
    config = tiny_training.config("compute.device=cuda", f"method={method}")
    unbroken = trainer.train(config, tmp_path / "unbroken", QUIET)
    broken = tmp_path / "broken"
    with pytest.MonkeyPatch.context() as patch:
        step = Learner.train_step
        patch.setattr(Learner, "train_step", lambda one: step(one) if one.step < 14 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trainer.train(config, broken, QUIET)
    again = trainer.resume(broken, QUIET)
    assert again["val"]["map_at_r"] == pytest.approx(unbroken["val"]["map_at_r"], abs=0.05)
    assert again["test"]["map_at_r"] == pytest.approx(unbroken["test"]["map_at_r"], abs=0.05)
    write_run_report(RunFolder.open(broken))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_protocol_ends_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[str] = []
    real = measure.retrieval

    def retrieval_seen(query: torch.Tensor, *rest: Any, **options: Any) -> Any:
        devices.append(query.device.type)
        return real(query, *rest, **options)

    monkeypatch.setattr(measure, "retrieval", retrieval_seen)
    settings = ["compute.device=cuda", "protocol.name=reality-check", "protocol.networks=2", "steps=4"]
    protocols.train(tiny_training.config(*settings), tmp_path / "run", QUIET)
    assert devices == ["cuda"] * len(devices)
