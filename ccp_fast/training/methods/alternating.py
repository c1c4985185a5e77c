"""Alternating projections onto feasible sets, each induced by one sample per class, with hard class mining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ccp_fast.projection import Projection
from ccp_fast.reference.pairs import normalise
from ccp_fast.samplers import HardClassSampler, RepresentativeSampler
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.data import TrainingData
from ccp_fast.training.methods.base import Method
from ccp_fast.training.model import embed
from ccp_fast.training.settings import Config


class Alternating(Method):
    """Pairs of samples with representatives alone; a lifetime of these is the projection onto one set.

    The proximal term acts from the second lifetime on, with the weights at the end of the one before as w_prev.
    """

    title = " with alternating projections"
    proxy_losses = False
    references = True
    sampler: RepresentativeSampler

    def __init__(self, config: Config, data: TrainingData, model: nn.Module, clock: PhaseClock) -> None:
        super().__init__(config, data, model, clock)
        self.projection = Projection(model, 0.0)
        self._mining_from = config.warm_start_steps

    def make_sampler(self) -> RepresentativeSampler:
        """Representatives first."""
        c, batch = self.config.alternating, self.config.batch
        kind = HardClassSampler if c.hard_classes else RepresentativeSampler
        return kind(
            self.data.labels, batch.classes, batch.samples, lifetime=c.lifetime, seed=self.config.seed
        )

    def attach(self, optimizer: Optimizer) -> None:
        """Add the proximal term to every step."""
        self._attach_timed(optimizer, self.projection.attach)

    def before_step(self, step: int) -> None:
        """With a new lifetime, take a snapshot and look which classes are near each other."""
        if step % self.sampler.lifetime:
            return
        if step > 0:
            self.projection.snapshot_()
            self.projection.lam = self.config.alternating.lam
        if isinstance(self.sampler, HardClassSampler) and step >= self._mining_from:
            with self.clock("reinitialisation"):
                images = self.data.plain_batches(self.sampler.representatives(step))
                embeddings = embed(self.model, images)
                self.sampler.update(normalise(embeddings, self.normalize))

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Of the other samples to the representatives of all classes in the batch."""
        p = self.sampler.classes_per_batch
        value: Tensor = self.criterion(embeddings[p:], labels[p:], embeddings[:p], labels[:p])
        return value

    def state_dict(self) -> dict[str, Any]:
        """Projection and sampler."""
        return {"projection": self.projection.state_dict(), "sampler": self.sampler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self.projection.load_state_dict(state["projection"])
        self.sampler.load_state_dict(state["sampler"])
