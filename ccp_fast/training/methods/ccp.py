"""CCP: proxies chosen anew by k-center, and the network kept near the last solution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ccp_fast.alternating.choice import spread
from ccp_fast.ccp import AlternatingProjections, EmbeddedPool, SubProblem
from ccp_fast.class_memory import ClassMemory
from ccp_fast.losses import MetricLoss
from ccp_fast.samplers import ClassPoolSampler
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.data import TrainingData
from ccp_fast.training.methods.base import Method
from ccp_fast.training.model import embed
from ccp_fast.training.settings import Config


def projections(config: Config, network: nn.Module, loss: MetricLoss) -> AlternatingProjections:
    """The algorithm with the settings of a run: it ends after its steps, not by itself."""
    c = config.ccp
    return AlternatingProjections(
        network,
        loss,
        pool_size=c.pool_size,
        lam=c.lam,
        lam_decay=c.lam_decay,
        patience=c.patience,
        min_delta=c.min_delta,
        pair_weight=c.pair_weight,
        proxy_weight=c.proxy_weight,
        stop_patience=None,
        warm_start=config.warm_start_steps,
        project_every=c.project_every,
        reinitialize=c.reinitialize,
        seeded=c.seeded,
        reload_best=c.reload_best,
    )


class Ccp(Method):
    """`ccp_fast.AlternatingProjections`, with a fixed number of steps: what is compared gets the same budget."""

    title = " with CCP"
    needs_proxies = True

    def __init__(self, config: Config, data: TrainingData, model: nn.Module, clock: PhaseClock) -> None:
        super().__init__(config, data, model, clock)
        c = config.ccp
        self._pools = ClassPoolSampler(data.labels, c.pool_size, seed=config.seed)
        self.memory: ClassMemory | None = None
        if c.pool == "memory":
            self.memory = ClassMemory(data.num_classes, c.pool_size, config.model.dim).to(self.device)
        self.ccp = projections(config, model, self.metric_loss)

    def attach(self, optimizer: Optimizer) -> None:
        """Add the proximal term to every step."""
        self._attach_timed(optimizer, self.ccp.attach)

    def before_step(self, step: int) -> None:
        """Choose proxies where a sub-problem begins."""
        if self.ccp.due:
            with self.clock("reinitialisation"):
                self.ccp.project(self._pool)

    def _pool(self, k: int) -> EmbeddedPool:
        """What is remembered; for the first proxies only if no class is missing: it would keep random ones."""
        if self.memory is not None and (k > 0 or bool(self.memory.stored().all())):
            return self.memory.pool()
        pool = self._pools.pool(k)
        return EmbeddedPool(embed(self.model, self.data.plain_batches(pool.indices)), pool.offsets)

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Within the batch and to all proxies."""
        if self.memory is not None:
            with self.clock("reinitialisation"):
                self.memory.store_(embeddings, labels)
        return self.ccp.loss(embeddings, labels)

    def after_evaluation(self, metric: float) -> None:
        """A sub-problem may end by it."""
        self.ccp.update(metric)

    @property
    def subproblem(self) -> int | None:
        """Its number."""
        return self.ccp.subproblem

    @property
    def subproblems(self) -> list[SubProblem]:
        """All so far."""
        return self.ccp.history

    @property
    def proxy_spread(self) -> float | None:
        """None while there are no proxies, or only one a class."""
        if self.ccp.subproblem < 0 or self.ccp.proxies.shape[1] < 2:
            return None
        return spread(self.ccp.proxies, self.ccp.normalize)

    def state_dict(self) -> dict[str, Any]:
        """That of the algorithm, and of the memory if there is one."""
        memory = {} if self.memory is None else {"memory": self.memory.state_dict()}
        return {**self.ccp.state_dict(), **memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on."""
        self.ccp.load_state_dict(state)
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])
