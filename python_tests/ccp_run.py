"""A small run of the CCP algorithm, which its tests share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ccp_fast import losses
from ccp_fast.ccp import AlternatingProjections, EmbeddedPool, embed_pool

CLASSES, PER_CLASS, DIM, POOL, FEATURES = 5, 2, 4, 6, 3


class Indices(NamedTuple):
    """What a sampler's `pool` returns."""

    indices: Tensor
    offsets: Tensor


class Run:
    """A small network with BatchNorm and dropout-free layers, its loss, optimizer and algorithm."""

    def __init__(self, seed: int = 0, wrap: bool = False, hook: bool = True, **options: Any) -> None:
        torch.manual_seed(seed)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, DIM)
        )
        if wrap:
            self.model = Wrapper(self.model)
        self.loss = losses.ContrastiveLoss(num_classes=CLASSES, dim=DIM, proxies_per_class=PER_CLASS)
        self.ccp = AlternatingProjections(self.model, self.loss, **{"pool_size": POOL, "lam": 0.1, **options})
        self.optimizer = torch.optim.Adam([*self.model.parameters(), *self.loss.parameters()], lr=0.01)
        self.ccp.attach(self.optimizer, hook=hook)

    def embed(self, k: int) -> EmbeddedPool:
        """A new pool each sub-problem, embedded with the live weights."""
        generator = torch.Generator().manual_seed(50 + k)
        samples = torch.randn(CLASSES * POOL, FEATURES, generator=generator)
        pool = Indices(torch.arange(CLASSES * POOL), torch.arange(CLASSES + 1) * POOL)
        return embed_pool(self.model, lambda indices: samples[indices], pool)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(CLASSES, (8,), generator=generator)
        return torch.randn(8, FEATURES, generator=generator) + labels[:, None], labels

    def step(self) -> None:
        """One training step, after `project` if that is due."""
        if self.ccp.due:
            self.ccp.project(self.embed)
        samples, labels = self.batch(self.ccp.steps)
        self.ccp.loss(self.model(samples), labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def weights(self) -> dict[str, Tensor]:
        state = {**self.model.state_dict(), "proxies": self.loss.proxies}
        return {name: tensor.detach().clone() for name, tensor in state.items()}

    def anchor(self) -> dict[str, Tensor]:
        """w_prev by name."""
        state = self.ccp.projection.state_dict()
        return {k.removeprefix("previous."): v.clone() for k, v in state.items() if k.startswith("previous.")}


class Wrapper(nn.Module):
    """Another model around the model, as DistributedDataParallel is."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def differ(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return any(not torch.equal(ours[name], theirs[name]) for name in theirs)


def outcomes(run: Run, *metrics: float) -> list[str]:
    return [run.ccp.update(metric) for metric in metrics]


def three_states(run: Run) -> list[dict[str, Tensor]]:
    """Sub-problem 0 with metrics .2, .5, .4: its best weights are the middle ones."""
    states = []
    for metric in (0.2, 0.5, 0.4):
        run.step()
        run.ccp.update(metric)
        states.append(run.weights())
    return states
