"""The Lightning callback: the same bits as the loop in CCP's docstring, resumed from Lightning's own checkpoints."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import assert_same_state
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ccp_fast
from ccp_fast.ccp import EmbeddedPool

pl = pytest.importorskip("lightning.pytorch", reason="optional: pip install 'ccp-fast[lightning]'")

from ccp_fast.integrations.lightning import AlternatingProjectionsCallback  # noqa: E402

CLASSES, PER_CLASS, DIM = 4, 6, 3
LABELS = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
IMAGES = torch.randn(len(LABELS), 5, generator=torch.Generator().manual_seed(0)) + LABELS[:, None]
# Of the evaluations, in numbers that float32 holds: Lightning logs in it.
METRICS = [m / 8 for m in (1, 3, 2, 2.5, 2.75, 5, 4, 4.5, 1, 1, 1, 1)]
CLIP = 0.05


class Embedder(pl.LightningModule):  # type: ignore[misc]
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(5, DIM)
        self.criterion = ccp_fast.losses.ContrastiveLoss(num_classes=CLASSES, dim=DIM, proxies_per_class=2)
        self.ccp = ccp_fast.AlternatingProjections(
            self.network, self.criterion, pool_size=6, lam=0.5, warm_start=3, patience=2, **options
        )

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return self.ccp.loss(self.network(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        self.log("metric", METRICS[self.trainer.global_step // 2 - 1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05, weight_decay=0.01)

    def embed(self, _: int) -> EmbeddedPool:
        with torch.no_grad():
            return EmbeddedPool(self.network(IMAGES), torch.arange(0, len(LABELS) + 1, PER_CLASS))


def batches() -> DataLoader[Any]:
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=8)


def fit(
    embedder: Embedder,
    steps: int,
    folder: Path,
    resume: Path | None = None,
    callback: AlternatingProjectionsCallback | None = None,
    **options: Any,
) -> Any:
    trainer = pl.Trainer(
        max_steps=steps,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        gradient_clip_val=CLIP,
        callbacks=[callback or AlternatingProjectionsCallback(embedder.ccp, embedder.embed, "metric")],
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(embedder, batches(), batches(), ckpt_path=resume)
    return trainer


def by_hand(embedder: Embedder, steps: int) -> None:
    """The loop of CCP's docstring, with clipping behind the proximal term."""
    optimizer, ccp = embedder.configure_optimizers(), embedder.ccp
    ccp.attach(optimizer, hook=False)
    loader = iter([b for _ in range(steps) for b in batches()])
    for step in range(steps):
        if ccp.due:
            ccp.project(embedder.embed)
        embedder.training_step(next(loader), step).backward()
        ccp.projection.step_()
        nn.utils.clip_grad_norm_(embedder.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        if step % 2 == 1 and ccp.update(METRICS[step // 2]) == "finished":
            break


@pytest.mark.parametrize("options", [{}, {"stop_patience": 3}, {"project_every": 4}], ids=str)
def test_the_same_bits_as_the_loop_by_hand(options: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = Embedder(**options), Embedder(**options)
    trainer = fit(theirs, 20, tmp_path)
    by_hand(ours, 20)
    assert_same_state(theirs.state_dict(), ours.state_dict())
    assert_same_state(theirs.ccp.state_dict(), ours.ccp.state_dict())
    assert theirs.ccp.subproblem >= 1
    assert theirs.ccp.projection.penalty > 0
    assert trainer.global_step == theirs.ccp.steps == (20 if "stop_patience" not in options else 10)


def test_resumes_to_the_bit(tmp_path: Path) -> None:
    unbroken, first, second = Embedder(), Embedder(), Embedder()
    fit(unbroken, 20, tmp_path)
    fit(first, 12, tmp_path).save_checkpoint(tmp_path / "at-12.ckpt")
    fit(second, 20, tmp_path, resume=tmp_path / "at-12.ckpt")
    assert_same_state(unbroken.state_dict(), second.state_dict())
    assert_same_state(unbroken.ccp.state_dict(), second.ccp.state_dict())


def test_a_second_fit_is_refused_and_another_validation_tells_nothing(tmp_path: Path) -> None:
    embedder = Embedder()
    callback = AlternatingProjectionsCallback(embedder.ccp, embedder.embed, "metric")
    trainer = fit(embedder, 6, tmp_path, callback=callback)
    before = copy.deepcopy(embedder.ccp.state_dict())
    trainer.validate(embedder, batches(), verbose=False)
    assert_same_state(embedder.ccp.state_dict(), before)
    with pytest.raises(RuntimeError, match=r"^fit: expected one for each callback, .* fit with ckpt_path$"):
        fit(embedder, 6, tmp_path, callback=callback)
    assert_same_state(embedder.ccp.state_dict(), before)


def test_says_what_it_needs(tmp_path: Path) -> None:
    decoupled = Embedder(mode="decoupled")
    with pytest.raises(ValueError, match=r'^ccp: expected mode="coupled", got .decoupled.'):
        AlternatingProjectionsCallback(decoupled.ccp, decoupled.embed, "metric")
    embedder = Embedder()
    callback = AlternatingProjectionsCallback(embedder.ccp, embedder.embed, "map")
    trainer = fit(embedder, 1, tmp_path)
    trainer.sanity_checking = False
    with pytest.raises(KeyError, match=r"monitor: expected a metric that was logged \(.*\), got 'map'"):
        callback.on_validation_end(trainer, embedder)
    trainer.strategy.optimizers = [*trainer.optimizers, *trainer.optimizers]
    with pytest.raises(ValueError, match=r"^trainer: expected one optimizer, got 2"):
        callback.on_train_start(trainer, embedder)
