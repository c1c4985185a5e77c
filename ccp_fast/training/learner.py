"""Everything that learns, and one step of it: network, method (with the loss) and optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ccp_fast.data import ImageSource
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.config import Config
from ccp_fast.training.data import TrainingData
from ccp_fast.training.inputs import plain_batches
from ccp_fast.training.methods import METHODS
from ccp_fast.training.model import GlyphNet, embed
from ccp_fast.training.optimizer import Optimization


class Learner:
    """Network, method and optimizer; the state of a run is theirs and the number of the step."""

    def __init__(self, config: Config, images: ImageSource) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.step = 0  # steps done
        self.clock = PhaseClock()
        self.model = GlyphNet(config.model)
        self.data = TrainingData(images, config, self.model.input)
        self.method = METHODS[config.method](config, self.data, self.model, self.clock)
        self.data.follow(self.method.sampler.batch)
        self.optimization = Optimization(config, self.model, self.criterion, len(images))
        self.method.attach(self.optimizer)

    @property
    def criterion(self) -> nn.Module:
        """What trains beside the network: proxies, heads, nothing."""
        return self.method.criterion

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of both."""
        return self.optimization.optimizer

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
            loss = self.method.loss(embeddings, labels)
        with self.clock("backward"):
            loss.backward()
        with self.clock("optimizer"):
            self.optimization.step()
        self.step += 1
        return float(loss.detach())

    def embed(self, images: ImageSource) -> Tensor:
        """Embeddings [n, dim] of all images of a source, in eval mode."""
        return embed(self.model, plain_batches(images, self.config, self.model.input))

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "criterion": self.criterion.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "torch_rng": torch.get_rng_state(),
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
        self.clock.load_state_dict(state["clock"])

    def load_weights(self, state: Mapping[str, Any]) -> None:
        """Network and criterion only, to evaluate them."""
        self.model.load_state_dict(state["model"])
        self.criterion.load_state_dict(state["criterion"])
