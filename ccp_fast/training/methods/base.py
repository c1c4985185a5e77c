"""What a method of training decides, and what it may leave to the defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ccp_fast._checks import Normalize
from ccp_fast.ccp import SubProblem
from ccp_fast.losses import MetricLoss
from ccp_fast.samplers import MPerClassSampler
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.data import TrainingData
from ccp_fast.training.errors import UserError
from ccp_fast.training.objective import build_loss
from ccp_fast.training.settings import Config


@contextmanager
def batch_errors() -> Iterator[None]:
    """UserError for batches that do not fit the labels: the sampler itself knows."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"batch.classes: {str(error).partition(': ')[2]}") from None


class Method:
    """Which samples a batch has, what is minimised over it, and what happens between two steps.

    A new method is a file like `xbm.py`, a line in `methods/__init__.py` and its name in `MethodName`; settings of
    its own are a section of `Config`. What it leaves as it is here is that of plain training.
    """

    title: ClassVar[str]  # in headings, after the name of the loss
    uses_loss: ClassVar[bool] = True  # whether it minimises the loss that the configuration names
    needs_proxies: ClassVar[bool] = False  # of any loss, as many a class as `ccp.proxies_per_class`
    proxy_losses: ClassVar[bool] = True  # whether losses that need proxies fit
    references: ClassVar[bool] = False  # whether the loss gets references beside the batch

    def __init__(self, config: Config, data: TrainingData, model: nn.Module, clock: PhaseClock) -> None:
        self.config, self.data, self.model, self.clock = config, data, model, clock
        self.normalize = self.normalize_of(config)  # how embeddings are compared in retrieval
        self.device = next(model.parameters()).device
        self.criterion = self.make_criterion().to(self.device)
        with batch_errors():
            self.sampler = self.make_sampler()

    def make_criterion(self) -> nn.Module:
        """What trains, or is saved, beside the network; by default the loss that the configuration names."""
        return build_loss(
            self.config,
            self.data.num_classes,
            proxies=self.needs_proxies,
            allow_proxy_losses=self.proxy_losses,
            references=self.references,
        )

    def make_sampler(self) -> MPerClassSampler:
        """The batches by number."""
        batch = self.config.batch
        return MPerClassSampler(self.data.labels, batch.classes, batch.samples, seed=self.config.seed)

    @classmethod
    def normalize_of(cls, config: Config) -> Normalize:
        """How embeddings are compared in retrieval: as by the loss."""
        with torch.random.fork_rng(devices=[]):  # some losses draw proxies, which nobody looks at here
            return build_loss(config, num_classes=1).normalize

    @property
    def metric_loss(self) -> MetricLoss:
        """The criterion, where it is one of `ccp_fast.losses`."""
        assert isinstance(self.criterion, MetricLoss)
        return self.criterion

    def attach(self, optimizer: Optimizer) -> None:
        """Called once, before the first step."""

    def before_step(self, step: int) -> None:
        """Called before the batch of a step is drawn; steps count from 0."""

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The scalar to minimise, of a batch in the sampler's order."""
        return cast(Tensor, self.criterion(embeddings, labels))

    def after_evaluation(self, metric: float) -> None:
        """Told the metric on the validation classes."""

    @property
    def subproblem(self) -> int | None:
        """Of CCP, where the method has any: −1 in the warm start."""
        return None

    @property
    def subproblems(self) -> list[SubProblem]:
        """What is known of each so far."""
        return []

    @property
    def proxy_spread(self) -> float | None:
        """Mean distance between two proxies of a class, where it says something."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on, but for the criterion."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""

    def _attach_timed(self, optimizer: Optimizer, attach: Callable[[Optimizer], object]) -> None:
        """Attach what acts as hooks before the optimizer's step; a hook on either side times it."""
        timing = ExitStack()

        def begin(*_: Any) -> None:
            timing.enter_context(self.clock("projection"))

        def end(*_: Any) -> None:
            timing.close()

        optimizer.register_step_pre_hook(begin)
        attach(optimizer)
        optimizer.register_step_pre_hook(end)
