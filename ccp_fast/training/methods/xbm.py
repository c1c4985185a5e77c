"""Cross-batch memory: past embeddings as further references of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ccp_fast.cross_batch_memory import CrossBatchMemory
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.data import TrainingData
from ccp_fast.training.methods.base import Method
from ccp_fast.training.settings import Config


class Xbm(Method):
    """`ccp_fast.CrossBatchMemory`."""

    title = " with a cross-batch memory"
    proxy_losses = False
    references = True

    def __init__(self, config: Config, data: TrainingData, model: nn.Module, clock: PhaseClock) -> None:
        super().__init__(config, data, model, clock)
        c = config.xbm
        self.memory = CrossBatchMemory(
            c.size,
            config.model.dim,
            warm_up=config.warm_start_steps,
            pair_weight=c.pair_weight,
            memory_weight=c.memory_weight,
            include_batch=c.include_batch,
        ).to(self.device)

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Within the batch and, after the warm-up, to the memory."""
        value: Tensor = self.memory(self.metric_loss, embeddings, labels)
        return value

    def state_dict(self) -> dict[str, Any]:
        """The memory."""
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self.memory.load_state_dict(state)
