"""What a run takes where nothing was said, and that stored runs stay what they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_training
from training_runs import QUIET, tiny_data  # noqa: F401

pytest.importorskip("safetensors")

from ccp_fast import _loss_options
from ccp_fast.training import trainer
from ccp_fast.training.config import load_config, to_yaml
from ccp_fast.training.errors import UserError
from ccp_fast.training.objective import build_loss
from ccp_fast.training.published import settled
from ccp_fast.training.run_folder import RunFolder, last_unfinished
from ccp_fast.training.settings import Config


def scale_and_margin(config: Config) -> list[float]:
    """What margin_softmax computes with."""
    return _loss_options.margin_softmax(**build_loss(config, 5).options).parameters


@pytest.mark.parametrize(
    ("settings", "scale", "margin"),
    [
        ([], 64, 0.5),
        (["loss.options.kind=arcface"], 64, 0.5),
        (["loss.options.kind=cosface"], 64, 0.35),
        (["loss.options.kind=cosface", "loss.options.margin=0.2"], 64, 0.2),
        (["loss.options.kind=none"], 20, 0),
        (["loss.options.kind=none", "loss.options.scale=16"], 16, 0),
    ],
    ids=str,
)
def test_margin_softmax_by_its_kind(settings: list[str], scale: float, margin: float) -> None:
    config = settled(tiny_training.config("loss.name=margin_softmax", "method=plain", *settings))
    assert scale_and_margin(config) == [scale, margin]
    assert settled(config) == config


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [([], 1 / 9), (["variant=original"], 1), (["variant=original", "temperature=0.5"], 0.5)],
    ids=str,
)
def test_proxy_nca_by_its_variant(settings: list[str], temperature: float) -> None:
    config = tiny_training.config(
        "loss.name=proxy_nca", "method=plain", *(f"loss.options.{s}" for s in settings)
    )
    assert build_loss(settled(config), 5).options["temperature"] == temperature


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["method=plain", "loss.name=proxy_nca"], "hundredfold"),
        (["method=plain", "loss.name=proxy_nca", "loss.options.variant=original"], "same"),
        (["method=plain", "loss.name=proxy_nca", "optimizer.proxies=same"], "same"),
        (["method=ccp", "loss.name=proxy_nca"], "same"),
        (["method=plain", "loss.name=c2"], "same"),
        (["method=plain", "loss.name=margin_softmax"], "same"),
        (["loss.name=c2", "optimizer.proxies=hundredfold"], "hundredfold"),
    ],
    ids=str,
)
def test_the_rate_of_proxies(settings: list[str], expected: str) -> None:
    assert settled(load_config(settings=settings)).optimizer.proxies == expected


def test_a_run_stores_what_it_took(tmp_path: Path) -> None:
    config = tiny_training.config("loss.name=proxy_nca", "method=plain")
    trainer.train(config, tmp_path / "run", QUIET)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "proxies: hundredfold" in text
    run = RunFolder.open(tmp_path / "run")
    run.check_same_settings(config)
    with pytest.raises(UserError, match=r"optimizer.proxies: 'hundredfold' there, 'same' here"):
        run.check_same_settings(
            tiny_training.config("loss.name=proxy_nca", "method=plain", "optimizer.proxies=same")
        )


def stored(path: Path, text: str) -> RunFolder:
    path.mkdir()
    (path / "config.yaml").write_text(text)
    return RunFolder.open(path)


def test_runs_from_before_stay_what_they_were(tmp_path: Path) -> None:
    """Their folders name the rate, or are older than the choice; margins did not depend on the kind."""
    old = to_yaml(Config()).replace("  proxies: auto\n", "").replace("  warm_up_embedding: false\n", "")
    plain = old.replace("method: ccp", "method: plain")
    nca = stored(tmp_path / "nca", plain.replace("name: c2", "name: proxy_nca"))
    assert nca.config.optimizer.proxies == "same"
    assert not nca.config.optimizer.warm_up_embedding
    softmax = plain.replace("name: c2\n  options: {}", "name: margin_softmax\n  options: {kind: %s}")
    for kind, margin in (("none", 0), ("cosface", 0.5), ("arcface", 0.5)):
        run = stored(tmp_path / kind, softmax % kind)
        assert scale_and_margin(run.config) == [64, margin]
    stored(tmp_path / "c2", old).check_same_settings(Config())


def test_an_unfinished_run_is_found_by_what_its_settings_stand_for(tmp_path: Path) -> None:
    config = load_config(settings=["method=plain", "loss.name=soft_triple"])
    RunFolder.create(tmp_path / "run-001", config, {})
    same = load_config(settings=["method=plain", "loss.name=soft_triple", "optimizer.proxies=same"])
    assert last_unfinished(tmp_path, config, "run") == tmp_path / "run-001"
    assert last_unfinished(tmp_path, same, "run") is None
