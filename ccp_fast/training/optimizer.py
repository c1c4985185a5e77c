"""The optimizer: which parameters learn at which rate, and when."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from ccp_fast.training.errors import UserError
from ccp_fast.training.model import Network
from ccp_fast.training.published import rate_of_proxies
from ccp_fast.training.schedule import rate_factor
from ccp_fast.training.settings import Config


class ProxyRate(NamedTuple):
    """How proxies that a loss owns learn."""

    factor: float  # times the network's rate
    warm_up: float  # epochs at the start in which they alone learn


# "same": CCP, whose proxies are embeddings. "hundredfold": as is customary for Proxy-Anchor, ProxyNCA++ and SoftTriple,
# whose proxies are drawn at random beside a pretrained network, which learns at 1e-5 to 1e-4. Proxy-Anchor's code has
# the epoch.
PROXY_RATES = {"same": ProxyRate(1.0, 0.0), "hundredfold": ProxyRate(100.0, 1.0)}


class Optimization:
    """Adam or RAdam over the network and what trains beside it; proxies have a group of their own."""

    def __init__(self, config: Config, network: Network, criterion: nn.Module, images: int) -> None:
        self._config = config
        trained = [p for p in network.parameters() if p.requires_grad]
        proxies = [p for name, p in criterion.named_parameters() if name == "proxies"]
        heads = [p for name, p in criterion.named_parameters() if name != "proxies"]
        rate = proxy_rate(config) if proxies else ProxyRate(1.0, 0.0)
        self.warm_up = warm_up_steps(config, rate, images)
        c = config.optimizer
        spared = {id(p) for p in network.embedding.parameters()} if c.warm_up_embedding else set()
        self._frozen_at_first = [p for p in trained if id(p) not in spared]
        groups = [
            {"params": [*trained, *heads], "lr": c.lr, "weight_decay": c.weight_decay},
            {"params": proxies, "lr": c.lr * rate.factor, "weight_decay": 0.0},
        ]
        groups = [{**group, "base_lr": group["lr"]} for group in groups if group["params"]]
        self.optimizer: Optimizer = (
            torch.optim.RAdam(groups, betas=c.betas)
            if c.name == "radam"
            else torch.optim.Adam(groups, betas=c.betas, fused=True)
        )

    def attach_clipping(self) -> None:
        """Cut the norm of all gradients together, before every step and after what was attached earlier."""
        limit = self._config.optimizer.clip_norm
        if limit is None:
            return
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

        def clip(*_: Any) -> None:
            torch.nn.utils.clip_grad_norm_(parameters, limit)

        self.optimizer.register_step_pre_hook(clip)

    def before_step(self, step: int) -> None:
        """Set the rates of a step; in the warm-up the network's weights stand still, its running statistics move."""
        if self.warm_up:
            for parameter in self._frozen_at_first:
                parameter.requires_grad_(step >= self.warm_up)
        factor = rate_factor(self._config.optimizer.schedule, step, self._config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    def step(self) -> None:
        """Use the gradients, and clear them."""
        self.optimizer.step()
        self.optimizer.zero_grad()


def proxy_rate(config: Config) -> ProxyRate:
    """The preset that is named, with what the settings change of it; UserError for a warm-up that cannot be."""
    c = config.optimizer
    preset = PROXY_RATES[rate_of_proxies(config)]
    rate = ProxyRate(
        preset.factor * c.proxy_lr_factor,
        preset.warm_up if c.proxy_warm_up is None else c.proxy_warm_up,
    )
    if rate.warm_up and config.method == "ccp":
        raise UserError(
            f"optimizer.proxy_warm_up: expected 0 with CCP, whose proxies come later, got {rate.warm_up:g}"
        )
    return rate


def warm_up_steps(config: Config, rate: ProxyRate, images: int) -> int:
    """Of the warm-up."""
    steps_per_epoch = images / (config.batch.classes * config.batch.samples)
    return math.ceil(rate.warm_up * steps_per_epoch)
