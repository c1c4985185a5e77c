"""Chance-constrained deep metric learning by alternating projections (CCP), around any training loop.

    loss = ccp_fast.losses.ContrastiveLoss(num_classes=800, dim=128, proxies_per_class=4)
    optimizer = torch.optim.Adam([*model.parameters(), *loss.parameters()], lr=1e-3)
    ccp = ccp_fast.AlternatingProjections(model, loss, pool_size=8, lam=2e-4, warm_start=1000)
    ccp.attach(optimizer)

    for step, (images, labels) in enumerate(batches):
        if ccp.due:  # the warm start or a sub-problem is over
            ccp.project(lambda k: embed_pool(model, images_of, sampler.pool(k)))
        ccp.loss(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 25 == 24 and ccp.update(map_at_r(model)) == "finished":
            break
    ccp.restore_best()

To save a run: the states of model, loss, optimizer, sampler and `ccp`. To resume it: build the same, load
them in any order and go on with the same batches.

Source: arXiv 2209.09060, algorithm 1. Where the code published with it departs from it, this module follows
the paper: a metric belongs to the weights it was computed with, k-center sees the vectors as the loss does, a
point is picked once, and w_prev is always a solution of the last sub-problem.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ccp_fast._checks import Normalize, check_one_of
from ccp_fast.alternating.choice import check_pool, choose_proxies, covering_radii, spread
from ccp_fast.alternating.pool import EmbeddedPool, Pool, embed_pool
from ccp_fast.alternating.record import SubProblem
from ccp_fast.alternating.weights import (
    Weights,
    copy_weights,
    live_weights,
    restore_weights,
    weights_from_state,
)
from ccp_fast.losses import MetricLoss
from ccp_fast.projection import Projection

__all__ = ["AlternatingProjections", "EmbeddedPool", "Pool", "SubProblem", "embed_pool"]

Outcome = Literal["continue", "subproblem_ended", "finished"]


class AlternatingProjections:
    """min over weights w and proxies p of E[loss(f_w(x), p)] + (lambda_k/2)·‖w − w_prev‖², for k = 0, 1, ...

    Sub-problem k begins with `project`: w_prev becomes the best weights w* of sub-problem k − 1, and the
    proxies become K points of a pool of embeddings per class, picked by k-center with its best proxies p* as
    seeds (see `seeded`). The live weights go on from where they are. lambda_0 = 0, lambda_k = lam·lam_decay^k. Only the
    network is regularised, not the proxies. A sub-problem ends after `patience` evaluations in a row without
    gain, each sub-problem looking for a best of its own; if none of its evaluations gave a number, its
    solution is the live weights and proxies at its end. Memory: up to three copies of the network, w_prev, w*
    and the best of the run.

    Args:
        model: the parameters that are trainable now will be projected; "best weights" are all parameters
            and buffers. Of a wrapped model pass the inner one (`ddp.module`): `state_dict` has its names.
        loss: a `MetricLoss` that owns proxies [C, K, D]; not a part of `model`.
        pool_size: at most so many embeddings per class to choose from (b in the paper); at least K.
        lam: lambda. 0 (an ablation) leaves only the choice of proxies.
        lam_decay: factor per sub-problem, applied from the first one on: lambda_1 = lam·lam_decay.
        patience: evaluations without gain that end a sub-problem.
        min_delta: a metric is a gain if it is better than the best by more than this. NaN never is.
        pair_weight: of the loss within the batch in `loss()`.
        proxy_weight: of the loss to the proxies in `loss()`.
        stop_patience: evaluations in a row without gain over the whole run that end it, counted from
            sub-problem 0 on; None: never.
        warm_start: optimizer steps with the loss within the batch alone, before sub-problem 0. A pretrained
            network needs none; from random weights CCP collapses without.
        project_every: end a sub-problem every so many optimizer steps, instead of by `patience`.
        initialize: False: sub-problem 0 takes the proxies the loss has; k-center starts with sub-problem 1.
        reinitialize: False (an ablation): proxies are chosen for sub-problem 0 only, the others move w_prev.
        seeded: False: k-center always begins without seeds, as for sub-problem 0. With p* as seeds it picks
            what the old proxies cover least, and the picks replace the seeds: a class loses the places
            that its proxies had. Without, each choice covers its pool by itself.
        normalize: how k-center sees embeddings and proxies: "loss" as the loss does; "unit", "ball"; None as
            they are (the published code's default). What becomes a proxy is always the embedding as it is.
        reload_best: True: a sub-problem starts from w* and p* instead of the live ones.
        reset_optimizer_state: False: the optimizer's moments of the old proxies act on the new ones.
        monitor: "max" or "min", the better direction of the metric.
        mode: "coupled" or "decoupled", see `Projection`.

    Attributes:
        subproblem: k; −1 during the warm start.
        steps: optimizer steps since `attach`.
        history: one `SubProblem` for each call of `project`.
        best_metric: over the whole run; None before the first number.

    Raises ValueError for a loss without proxies, pool_size < K, counts below 1, a negative number or an
    unknown option.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: MetricLoss,
        *,
        pool_size: int,
        lam: float,
        lam_decay: float = 1.0,
        patience: int = 3,
        min_delta: float = 1e-5,
        pair_weight: float = 0.1,
        proxy_weight: float = 1.0,
        stop_patience: int | None = 60,
        warm_start: int = 0,
        project_every: int | None = None,
        initialize: bool = True,
        reinitialize: bool = True,
        seeded: bool = True,
        normalize: Literal["loss", "ball", "unit"] | None = "loss",
        reload_best: bool = False,
        reset_optimizer_state: bool = True,
        monitor: Literal["max", "min"] = "max",
        mode: Literal["coupled", "decoupled"] = "coupled",
    ) -> None:
        if loss.proxies is None:
            raise ValueError(
                "loss: expected one that owns proxies (num_classes and dim given), got one without"
            )
        proxies_per_class = loss.proxies.shape[1]
        if pool_size < proxies_per_class:
            raise ValueError(
                f"pool_size: expected at least proxies_per_class = {proxies_per_class}, got {pool_size}"
            )
        _check_at_least(1, patience=patience, stop_patience=stop_patience, project_every=project_every)
        _check_at_least(0, lam=lam, lam_decay=lam_decay, min_delta=min_delta, warm_start=warm_start)
        _check_at_least(0, pair_weight=pair_weight, proxy_weight=proxy_weight)
        check_one_of("normalize", normalize, ("loss", "ball", "unit", None))
        check_one_of("monitor", monitor, ("max", "min"))

        self.model, self.criterion, self.proxies = model, loss, loss.proxies
        self.pool_size = pool_size
        self.lam, self.lam_decay = lam, lam_decay
        self.patience, self.stop_patience, self.min_delta = patience, stop_patience, min_delta
        self.pair_weight, self.proxy_weight = pair_weight, proxy_weight
        self.warm_start, self.project_every = warm_start, project_every
        self.initialize, self.reinitialize, self.seeded = initialize, reinitialize, seeded
        self.normalize: Normalize = loss.normalize if normalize == "loss" else normalize
        self.reload_best, self.reset_optimizer_state = reload_best, reset_optimizer_state
        self.monitor = monitor

        self.projection = Projection(model, 0.0, mode=mode)
        self._proxy_optimizer: Optimizer | None = None
        self.steps: int = 0
        self._began_at: int = 0  # steps before the sub-problem
        self.history: list[SubProblem] = []
        self.best_metric: float | None = None
        self._best: Weights | None = None  # of the run
        self._stale_run = 0  # evaluations without gain in the run
        self._solution_metric: float | None = None
        self._solution: Weights | None = None  # (w*, p*) of the sub-problem so far
        self._start_subproblem(-1)

    def attach(
        self, optimizer: Optimizer, proxy_optimizer: Optimizer | None = None, *, hook: bool = True
    ) -> None:
        """Add the proximal term to every step of `optimizer`, and count its steps. Once, before the first.

        The proxies are in `optimizer` too, or in `proxy_optimizer`. Raises ValueError if they are not.
        hook: False: only count steps. Call `projection.step_()` yourself, for instance inside a closure of
        `optimizer.step`, after its `backward()`.
        """
        if self._proxy_optimizer is not None:
            raise RuntimeError("attach: expected one call, an optimizer is attached already")
        name, holder = "optimizer", optimizer
        if proxy_optimizer is not None:
            name, holder = "proxy_optimizer", proxy_optimizer
        if not any(p is self.proxies for group in holder.param_groups for p in group["params"]):
            raise ValueError(f"{name}: expected the loss's proxies among its parameters, got none of them")
        if hook:
            self.projection.attach(optimizer)
        optimizer.register_step_post_hook(self._count_step)
        self._proxy_optimizer = holder

    @property
    def due(self) -> bool:
        """Whether `project` comes next. To be asked before each step."""
        if self.subproblem < 0:
            return self.steps >= self.warm_start
        if self.project_every is not None:
            return self.steps - self._began_at >= self.project_every
        return self._stale >= self.patience

    @property
    def finished(self) -> bool:
        """Whether the run had `stop_patience` evaluations in a row without gain."""
        return self.stop_patience is not None and self._stale_run >= self.stop_patience

    def loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """pair_weight·(loss within the batch) + proxy_weight·(loss to all proxies), from sub-problem 0 on.

        In the warm start it is the loss within the batch. Raises RuntimeError before `attach`, and while
        `project` is due.
        """
        if self._proxy_optimizer is None:
            raise RuntimeError("loss: expected `attach(optimizer)` before the first step")
        if self.due:
            raise RuntimeError(
                f"loss: expected `project` after step {self.steps}, ask `due` before each step"
            )
        if self.subproblem < 0:
            return self.criterion.pairs(embeddings, labels)
        to_proxies: Tensor = self.proxy_weight * self.criterion(embeddings, labels)
        if self.pair_weight == 0:
            return to_proxies
        return self.pair_weight * self.criterion.pairs(embeddings, labels) + to_proxies

    def update(self, metric: float) -> Outcome:
        """Tell the metric of the live weights after an evaluation; the best weights so far are remembered.

        "finished": stop. "subproblem_ended": `project` is due. In the warm start always "continue".
        """
        metric = float(metric)
        best_of_run = self._is_gain(metric, self.best_metric)
        if best_of_run:
            self._best, self.best_metric = self._live_weights(), metric
        if self.subproblem < 0:
            return "continue"
        self._stale_run = 0 if best_of_run else self._stale_run + 1
        if self._is_gain(metric, self._solution_metric):
            self._solution = self._best if best_of_run else self._live_weights()
            self._solution_metric, self._stale = metric, 0
        else:
            self._stale += 1
        if self.finished:
            return "finished"
        return "subproblem_ended" if self.due else "continue"

    def project(self, embed: Callable[[int], EmbeddedPool], *, seeds: Tensor | None = None) -> SubProblem:
        """Begin the next sub-problem, k; allowed before it is due.

        embed(k) is called if proxies are to be chosen (after w* is reloaded, with reload_best). It embeds
        samples of each class with the live weights in eval mode: see `embed_pool`; or it gives the last embeddings
        of training, `ClassMemory.pool()`. A class without samples keeps its proxies; one with fewer than K samples
        gets some of them twice.
        `seeds` [C, t, D] replaces the seeds of k-center: p*, and none for sub-problem 0 or where not `seeded`:
        the first pick is then the embedding of largest norm (after `normalize`; of equals that of lowest index).
        Raises ValueError for a pool that does not fit the proxies, RuntimeError for NaN in it; the old
        sub-problem then goes on.
        """
        began = time.perf_counter()
        index = self.subproblem + 1
        solution = previous_spread = None
        if index > 0:
            solution = self._solution or live_weights(self.model, self.proxies)
            if self.reload_best:
                restore_weights(solution, self.model, self.proxies)
            previous_spread = spread(solution.proxies, self.normalize)

        kept = len(self.proxies)
        radii = previous_radii = pool_milliseconds = None
        if self.initialize if index == 0 else self.reinitialize:
            pool = check_pool(embed(index), self.proxies, self.pool_size)
            pool_milliseconds = 1e3 * (time.perf_counter() - began)
            if solution is not None:
                previous_radii = covering_radii(pool, solution.proxies, self.normalize)
                if self.seeded and seeds is None:
                    seeds = solution.proxies
            new, kept = choose_proxies(pool, self.proxies, seeds, self.normalize)
            self._replace_proxies(new)
            radii = covering_radii(pool, new, self.normalize)

        if solution is not None:
            self.projection.snapshot_(solution.network)
        self._start_subproblem(index)
        record = SubProblem(
            index=index,
            step=self.steps,
            lam=self.projection.lam,
            radius_mean=None if radii is None else float(radii.mean()),
            radius_max=None if radii is None else float(radii.max()),
            previous_radius_mean=None if previous_radii is None else float(previous_radii.mean()),
            spread=spread(self.proxies, self.normalize),
            previous_spread=previous_spread,
            classes_kept=kept,
            milliseconds=1e3 * (time.perf_counter() - began),
            pool_milliseconds=pool_milliseconds,
        )
        self.history.append(record)
        return record

    def restore_best(self) -> float | None:
        """Put the best weights, buffers and proxies of the run back, if any; returns their metric."""
        if self._best is not None:
            restore_weights(self._best, self.model, self.proxies)
        return self.best_metric

    def state_dict(self) -> dict[str, Any]:
        """Everything but the options, in nested dicts and lists of tensors, numbers, strings and None.

        The live weights and proxies are in the states of model and loss. As in torch, tensors are not copied.
        """
        shared = self._solution is self._best  # then written once: no two tensors of the state share memory
        return {
            "subproblem": self.subproblem,
            "steps": self.steps,
            "began_at": self._began_at,
            "stale": self._stale,
            "stale_run": self._stale_run,
            "best_metric": self.best_metric,
            "solution_metric": self._solution_metric,
            "best": None if self._best is None else self._best._asdict(),
            "solution": None if self._solution is None or shared else self._solution._asdict(),
            "solution_is_best": shared,
            "projection": self.projection.state_dict(),
            "history": [asdict(record) for record in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken; ValueError, and no change, if it does not fit."""
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(
                f"state: expected every key of `state_dict`, got none called {', '.join(missing)}"
            )
        best, solution = (
            None if state[name] is None else weights_from_state(name, state[name], self.model, self.proxies)
            for name in ("best", "solution")
        )
        self.projection.load_state_dict(state["projection"])
        self._start_subproblem(state["subproblem"])
        self.steps, self._began_at = state["steps"], state["began_at"]
        self._stale, self._stale_run = state["stale"], state["stale_run"]
        self.best_metric, self._solution_metric = state["best_metric"], state["solution_metric"]
        self._best, self._solution = best, best if state["solution_is_best"] else solution
        self.history = [SubProblem(**record) for record in state["history"]]

    def _start_subproblem(self, index: int) -> None:
        self.subproblem = index
        self.projection.lam = self.lam * self.lam_decay**index if index > 0 else 0.0
        self._began_at = self.steps
        self._stale = 0  # evaluations without gain in the sub-problem
        self._solution = self._solution_metric = None

    def _replace_proxies(self, new: Tensor) -> None:
        with torch.no_grad():
            self.proxies.copy_(new)
        if self.reset_optimizer_state and self._proxy_optimizer is not None:
            self._proxy_optimizer.state.pop(self.proxies, None)

    def _live_weights(self) -> Weights:
        return copy_weights(self.model, self.proxies)

    def _is_gain(self, metric: float, best: float | None) -> bool:
        if best is None:
            return not math.isnan(metric)
        gain = metric - best if self.monitor == "max" else best - metric
        return gain > self.min_delta  # False for NaN

    def _count_step(self, *_: Any) -> None:
        self.steps += 1


def _check_at_least(least: int, **numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not number >= least:
            raise ValueError(f"{name}: expected at least {least}, got {number}")
