"""CCP in PyTorch Lightning: needs the extra `ccp-fast[lightning]`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from ccp_fast.ccp import AlternatingProjections, EmbeddedPool


class AlternatingProjectionsCallback(Callback):
    """Drives a `ccp_fast.AlternatingProjections` in `Trainer.fit`; the module's loss is `ccp.loss`.

        class Embedder(LightningModule):
            def training_step(self, batch, _):
                images, labels = batch
                return self.ccp.loss(self.network(images), labels)

        embedder.ccp = AlternatingProjections(embedder.network, embedder.criterion, pool_size=8, lam=2e-4)
        callback = AlternatingProjectionsCallback(embedder.ccp, embed=embed, monitor="val_map_at_r")
        Trainer(callbacks=[callback]).fit(embedder, ...)

    One fit for a callback and its `ccp`, which count that fit's optimizer steps. To train on, make both anew and load
    a checkpoint: `fit(..., ckpt_path=...)`.

    Proxies are chosen where a sub-problem begins, before the batch. The proximal term comes in after the backward
    pass and before gradients are clipped. After each validation `monitor` is told to `ccp`, and training stops
    where it says "finished". The state of `ccp` is in Lightning's checkpoints. Afterwards
    `ccp.restore_best()` puts the best weights back.

    Args:
        ccp: with mode="coupled", around parts of the module that is trained.
        embed: called as embed(k) at sub-problem k, see `AlternatingProjections.project`.
        monitor: a metric that `validation_step` or `on_validation_epoch_end` logs.

    Raises ValueError for mode="decoupled", and, when training begins, for more than one optimizer; RuntimeError when
    a second fit begins; KeyError after a validation that did not log the metric.
    """

    def __init__(
        self, ccp: AlternatingProjections, embed: Callable[[int], EmbeddedPool], monitor: str
    ) -> None:
        if ccp.projection.mode != "coupled":
            raise ValueError(f'ccp: expected mode="coupled", got {ccp.projection.mode!r}')
        self.ccp, self.embed, self.monitor = ccp, embed, monitor
        self._attached = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the optimizer's steps from now on."""
        if len(trainer.optimizers) != 1:
            raise ValueError(f"trainer: expected one optimizer, got {len(trainer.optimizers)}")
        if self._attached:
            raise RuntimeError(
                "fit: expected one for each callback, whose ccp follows the optimizer of the first; to train on, make "
                "both anew and fit with ckpt_path"
            )
        # Lightning computes gradients in a closure of the step, out of reach of a hook before it.
        self.ccp.attach(trainer.optimizers[0], hook=False)
        self._attached = True

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a sub-problem if one is due."""
        if self.ccp.due:
            self.ccp.project(self.embed)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Add the proximal term to the gradients."""
        self.ccp.projection.step_()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the metric, of a validation that is part of the training."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise KeyError(f"monitor: expected a metric that was logged ({known}), got {self.monitor!r}")
        if self.ccp.update(float(trainer.callback_metrics[self.monitor])) == "finished":
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """That of the algorithm."""
        return self.ccp.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on."""
        self.ccp.load_state_dict(state_dict)
