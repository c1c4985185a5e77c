"""Everything that learns, and one step of it: network, method (with the loss) and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ccp_fast.data import ImageSource
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.data import TrainingData
from ccp_fast.training.inputs import plain_batches
from ccp_fast.training.methods import METHODS
from ccp_fast.training.model import Network, build_network, embed
from ccp_fast.training.optimizer import Optimization
from ccp_fast.training.settings import Config


class Learner:
    """Network, method and optimizer; the state of a run is theirs and the number of the step.

    Args:
        config: of the run.
        images: to train on.
        pretrained: False where the network's weights will be loaded from a state: those that it would start from
            need not be on this machine any more.
    """

    def __init__(self, config: Config, images: ImageSource, *, pretrained: bool = True) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.step = 0  # steps done
        self.model = build_network(config.model, config.compute, pretrained=pretrained)
        self.clock = PhaseClock(self.device)
        self.data = TrainingData(images, config, self.model.input)
        self.method = METHODS[config.method](config, self.data, self.model, self.clock)
        self.data.follow(self.method.sampler.batch)
        self.optimization = Optimization(config, self.model, self.criterion, len(images))
        self.method.attach(self.optimizer)
        self.optimization.attach_clipping()  # sees the gradient with the proximal term
        self.averaged = _averaged(self.model, config.optimizer.ema_decay)
        if config.compute.compile:
            self.model.compile()

    @property
    def device(self) -> torch.device:
        """Of network and criterion."""
        return next(self.model.parameters()).device

    @property
    def criterion(self) -> nn.Module:
        """What trains beside the network: proxies, heads, nothing."""
        return self.method.criterion

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of both."""
        return self.optimization.optimizer

    @property
    def network(self) -> Network:
        """What is evaluated and kept: the network, or the average of its weights over the steps."""
        return self.model if self.averaged is None else cast(Network, self.averaged.module)

    def train_step(self) -> float:
        """One batch; returns its loss."""
        self.method.before_step(self.step)
        with self.clock("optimizer"):
            self.optimization.before_step(self.step)
        with self.clock("data"):
            images, labels = self.data.batch(self.step, self.method.sampler.batch(self.step))
        with self.clock("forward"):
            embeddings = self.model(images)
        with self.clock("loss"):
            loss = self.method.loss(embeddings, labels.to(embeddings.device))
        with self.clock("backward"):
            loss.backward()
        with self.clock("optimizer"):
            self.optimization.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.model)
            value = float(loss.detach())  # which waits for all that a GPU still has to do
        self.step += 1
        return value

    def embed(self, images: ImageSource) -> Tensor:
        """Embeddings [n, dim] of all images of a source, in eval mode."""
        return embed(self.network, plain_batches(images, self.config, self.model.input))

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "gpu_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "clock": self.clock.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.step = state["step"]
        self.load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        # "ccp" in older checkpoints, None where the method was plain.
        method = state["method"] if "method" in state else state["ccp"] or {}
        self.method.load_state_dict(method)
        torch.set_rng_state(state["torch_rng"])
        if state.get("gpu_rng") is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["gpu_rng"], self.device)
        self.clock.load_state_dict(state["clock"])

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Network and criterion only, to evaluate them."""
        self.model.load_state_dict(state["model"])
        self.criterion.load_state_dict(state["criterion"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])


def best_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Those of `Learner.network`, out of a learner's state."""
    averaged = state.get("averaged")
    if averaged is None:
        return dict(state["model"])
    return {
        name.removeprefix("module."): value for name, value in averaged.items() if name.startswith("module.")
    }


def _averaged(network: Network, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of parameters and running statistics, from the first step on."""
    if decay is None:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
