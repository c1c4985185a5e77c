"""Everything that learns, and one step of it: network, loss, optimizer and the CCP algorithm around them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from ccp_fast.alternating.choice import spread
from ccp_fast.ccp import AlternatingProjections, SubProblem, embed_pool
from ccp_fast.training.augment import to_float
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.config import Config
from ccp_fast.training.data import TrainingData
from ccp_fast.training.model import GlyphNet
from ccp_fast.training.objective import build_loss
from ccp_fast.training.schedule import rate_factor


class Learner:
    """Network, loss, optimizer, CCP; the state of a run is theirs and the number of the step."""

    def __init__(self, config: Config, data: TrainingData) -> None:
        torch.manual_seed(config.seed)
        self.config, self.data = config, data
        self.step = 0  # steps done
        self.clock = PhaseClock()
        self.model = GlyphNet(config.model)
        self.criterion = build_loss(config, data.images.num_classes)
        self.optimizer = self._make_optimizer()
        self.ccp = self._make_ccp() if config.method == "ccp" else None

    def train_step(self) -> float:
        """One batch; returns its loss."""
        if self.ccp is not None and self.ccp.due:
            self._project(self.ccp)
        with self.clock("data"):
            images, labels = self.data.batch(self.step)
        with self.clock("forward"):
            embeddings = self.model(images)
        with self.clock("loss"):
            loss = (
                self.criterion(embeddings, labels) if self.ccp is None else self.ccp.loss(embeddings, labels)
            )
        with self.clock("backward"):
            loss.backward()
        with self.clock("optimizer"):
            self._set_rate()
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.step += 1
        return float(loss.detach())

    @torch.no_grad()
    def embed(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """uint8 images [n, c, h, w] to embeddings [n, dim], in eval mode."""
        self.model.eval()
        try:
            return torch.cat([self.model(to_float(part)) for part in torch.split(images, batch_size)])
        finally:
            self.model.train()

    @property
    def subproblems(self) -> list[SubProblem]:
        """What is known of each sub-problem so far."""
        return [] if self.ccp is None else self.ccp.history

    @property
    def proxy_spread(self) -> float | None:
        """Mean distance between two proxies of a class; None while there are none, or only one a class."""
        proxies = self.criterion.proxies
        if self.ccp is None or self.ccp.subproblem < 0 or proxies is None or proxies.shape[1] < 2:
            return None
        return spread(proxies, self.ccp.normalize)

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ccp": None if self.ccp is None else self.ccp.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "clock": self.clock.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step = state["step"]
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ccp is not None:
            self.ccp.load_state_dict(state["ccp"])
        torch.set_rng_state(state["torch_rng"])
        self.clock.load_state_dict(state["clock"])

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Network and proxies only, to evaluate them."""
        self.model.load_state_dict(state["model"])
        self.criterion.load_state_dict(state["criterion"])

    def _make_optimizer(self) -> torch.optim.Adam:
        c = self.config.optimizer
        groups = [{"params": list(self.model.parameters()), "lr": c.lr, "weight_decay": c.weight_decay}]
        if self.criterion.proxies is not None:
            groups.append(
                {"params": [self.criterion.proxies], "lr": c.lr * c.proxy_lr_factor, "weight_decay": 0.0}
            )
        for group in groups:
            group["base_lr"] = group["lr"]
        return torch.optim.Adam(groups, fused=True)

    def _make_ccp(self) -> AlternatingProjections:
        c = self.config.ccp
        ccp = AlternatingProjections(
            self.model,
            self.criterion,
            pool_size=c.pool_size,
            lam=c.lam,
            lam_decay=c.lam_decay,
            patience=c.patience,
            min_delta=c.min_delta,
            pair_weight=c.pair_weight,
            proxy_weight=c.proxy_weight,
            stop_patience=None,  # a fixed number of steps: what is compared gets the same budget
            warm_start=round(c.warm_start * self.config.steps),
            project_every=c.project_every,
            reinitialize=c.reinitialize,
            reload_best=c.reload_best,
        )
        # The projection is a hook of optimizer.step: a hook before it and one behind it time it.
        timing = ExitStack()

        def begin(*_: Any) -> None:
            timing.enter_context(self.clock("projection"))

        def end(*_: Any) -> None:
            timing.close()

        self.optimizer.register_step_pre_hook(begin)
        ccp.attach(self.optimizer)
        self.optimizer.register_step_pre_hook(end)
        return ccp

    def _project(self, ccp: AlternatingProjections) -> None:
        with self.clock("reinitialisation"):
            ccp.project(lambda k: embed_pool(self.model, self.data.plain_images, self.data.pool(k)))

    def _set_rate(self) -> None:
        c = self.config.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * rate_factor(c.schedule, self.step, self.config.steps)
