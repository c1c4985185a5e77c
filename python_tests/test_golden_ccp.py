"""AlternatingProjections against traces of the published callback (scripted) and of published training runs.

Every difference that is meant is written where it is tested, with the quirk it departs from in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from golden import Case, load
from golden.compare import assert_golden
from golden.coverage import CCP, cases_of
from torch import Tensor, nn

from ccp_fast import losses
from ccp_fast.ccp import AlternatingProjections, EmbeddedPool

TRAINED = [name for name in cases_of(CCP) if "/e2e_" in name]
# Scripted traces that need something else than the same calls; each has a test of its own.
DIFFERENT = [
    f"ccp-dml/cb_{name}" for name in ("minit4_patience2", "pool1", "metric_nan", "no_early_stopping")
]


def class_major(proxies: Any, classes: int) -> Tensor:
    """[C, K, D] from the published rows [K·C, D], where row j has label j mod C."""
    return torch.as_tensor(np.array(proxies)).unflatten(0, (-1, classes)).transpose(0, 1).contiguous()


def solution(ccp: AlternatingProjections) -> dict[str, Any] | None:
    """Best weights and proxies of the sub-problem so far."""
    state = ccp.state_dict()
    return state["best"] if state["solution_is_best"] else state["solution"]


def anchor(ccp: AlternatingProjections) -> list[Tensor]:
    """w_prev, in the order of the parameters."""
    state = ccp.projection.state_dict()
    return [state[f"previous.{name}"] for name, _ in ccp.model.named_parameters()]


def no_pool(k: int) -> EmbeddedPool:
    raise AssertionError("no pool was expected here")


# ---- scripted traces: weights, proxies, metrics and embeddings are given, the callback decides


class Scripted:
    """A run whose weights and proxies move by a script; `step` plays one evaluation."""

    def __init__(self, case: Case, initialize: bool = True, **options: Any) -> None:
        flags = case.flags
        self.case, self.classes = case, flags["C"]
        self.model = nn.Module()
        for i in range(2):
            self.model.register_parameter(f"w{i}", nn.Parameter(torch.tensor(case[f"w_init{i}"])))
        self.loss = losses.ContrastiveLoss(
            num_classes=flags["C"], dim=flags["D"], proxies_per_class=flags["K"]
        )
        with torch.no_grad():
            self.loss.proxies.copy_(class_major(case["proxies_init"], self.classes))
        self.calls = 0
        self.pool_size = flags["representative_pool_size"]
        if self.pool_size < flags["K"]:  # quirk 11: 1 means K fresh samples, 1 < b < K means b·K
            self.pool_size *= flags["K"]
        self.ccp = AlternatingProjections(
            self.model,
            self.loss,
            pool_size=self.pool_size,
            lam=flags["ccp_lambda"],
            lam_decay=flags["lambda_decay"],
            initialize=initialize,
            normalize=None,
            stop_patience=None,
            **{"patience": flags["early_stopping_patience"], **options},
        )
        self.optimizer = torch.optim.SGD([*self.model.parameters(), self.loss.proxies], lr=0.0)
        self.ccp.attach(self.optimizer)
        zeros = torch.zeros_like(self.loss.proxies)  # quirk 9: the first k-center starts from zero vectors
        self.ccp.project(self.pool if initialize else no_pool, seeds=zeros)

    def pool(self, k: int) -> EmbeddedPool:
        """The next `pool_size` answers of the sampler, class by class."""
        span = self.case["emb_seq"][self.calls : self.calls + self.pool_size]  # [b, C, D]
        self.calls += self.pool_size
        points = torch.from_numpy(span).transpose(0, 1).flatten(0, 1)
        return EmbeddedPool(points, torch.arange(self.classes + 1) * self.pool_size)

    def step(self, t: int, evaluate: bool = True, seeds: Tensor | None = None) -> bool:
        """Move to step t, tell its metric; True where a sub-problem ended (and the next one began)."""
        with torch.no_grad():
            for i, parameter in enumerate(self.model.parameters()):
                parameter.copy_(torch.from_numpy(self.case[f"w_init{i}"]) + t)
            self.loss.proxies += class_major(self.case["proxy_delta"][t - 1], self.classes)
        self.optimizer.step()
        if evaluate:
            self.ccp.update(self.case["metrics"][t - 1])
        self.solution = solution(self.ccp)
        ended = self.ccp.due
        if ended:
            self.ccp.project(self.pool, seeds=seeds)
        return ended

    def previous(self) -> list[Tensor]:
        return anchor(self.ccp)

    def assert_state(self, t: int) -> None:
        """Everything the trace holds after step t."""
        case = self.case
        assert self.ccp.subproblem == case["trace_global_step"][t]
        assert self.ccp.projection.lam == pytest.approx(case["trace_lam"][t], rel=1e-6)
        assert_golden(
            "proxies",
            self.loss.proxies.detach().numpy(),
            class_major(case["trace_proxies"][t], self.classes).numpy(),
        )
        if self.ccp.subproblem > 0:  # before, lambda is 0 and the anchor without effect
            for i, previous in enumerate(self.previous()):
                assert_golden(f"prev{i}", previous.numpy(), case[f"trace_prev{i}"][t])
        if t > 0 and self.solution is not None:
            for i in range(2):
                assert_golden(
                    f"best{i}", self.solution["network"][f"w{i}"].numpy(), case[f"trace_best{i}"][t]
                )
            best = class_major(case["trace_best_proxies"][t], self.classes)
            assert_golden("best proxies", self.solution["proxies"].numpy(), best.numpy())


@pytest.mark.parametrize("name", sorted(set(cases_of(CCP)) - set(TRAINED) - set(DIFFERENT)))
def test_decides_and_projects_as_published(name: str) -> None:
    case = load(name)
    run = Scripted(case, initialize=not case.flags["random_init"])
    run.assert_state(0)
    for t in range(1, len(case["metrics"]) + 1):
        assert run.step(t) == case["trace_ended"][t]
        run.assert_state(t)


def test_minimum_of_iterations_means_not_to_evaluate() -> None:
    """ccp_iterations=4 published: no metric is looked at in the first 3 steps of a sub-problem (quirk 4)."""
    case = load("ccp-dml/cb_minit4_patience2")
    run = Scripted(case)
    for t in range(1, len(case["metrics"]) + 1):
        evaluate = case["trace_step"][t - 1] + 1 >= case.flags["ccp_iterations"]
        assert run.step(t, evaluate) == case["trace_ended"][t]
        run.assert_state(t)


def test_pool_of_one_is_the_proxies_in_another_order() -> None:
    """b = 1 published: K fresh samples, no selection (quirk 11). Here k-center orders the same K samples."""
    case = load("ccp-dml/cb_pool1")
    run = Scripted(case)
    for t in range(1, len(case["metrics"]) + 1):
        assert run.step(t) == case["trace_ended"][t]
        if case["trace_ended"][t]:
            published = class_major(case["trace_proxies"][t], run.classes)
            for ours, theirs in zip(run.loss.proxies.detach(), published, strict=True):
                assert sorted(ours.tolist()) == sorted(theirs.tolist())
    assert case["trace_ended"].any()


def test_nan_is_no_gain() -> None:
    """Published: NaN counts as a gain, and so does the next number, however bad (quirk 7). Here neither."""
    case = load("ccp-dml/cb_metric_nan")
    run = Scripted(case)
    assert [run.step(t) for t in (1, 2, 3)] == [False, False, True]  # .2, nan, .1 at patience 2
    assert not case["trace_ended"][3]
    for i, previous in enumerate(run.previous()):
        assert_golden(f"prev{i}", previous.numpy(), case[f"trace_w{i}"][1])  # of the .2
    assert run.ccp.best_metric == pytest.approx(0.2)


def test_fixed_schedule_anchors_at_a_solution() -> None:
    """Published: without early stopping no best is ever taken, so w_prev and the seeds stay zero (quirk 5).

    Here a fixed schedule has the same sub-problems and lambdas, w_prev is the best of the sub-problem, and
    the published proxies come from passing the zeros as seeds.
    """
    case = load("ccp-dml/cb_no_early_stopping")
    run = Scripted(case, project_every=case.flags["ccp_iterations"])
    zeros = torch.zeros_like(run.loss.proxies)
    for t in range(1, len(case["metrics"]) + 1):
        assert run.step(t, seeds=zeros) == case["trace_ended"][t]
        assert run.ccp.projection.lam == pytest.approx(case["trace_lam"][t], rel=1e-6)
        proxies = class_major(case["trace_proxies"][t], run.classes)
        assert_golden("proxies", run.loss.proxies.detach().numpy(), proxies.numpy())
        if case["trace_ended"][t]:
            for i, previous in enumerate(run.previous()):
                assert not case[f"trace_prev{i}"][t].any()
                first = case[f"trace_w{i}"][t - 2]  # all metrics are equal, so the first is the best
                assert_golden(f"prev{i}", previous.numpy(), first)


# ---- published training runs: the same weights and proxies after every batch


class Net(nn.Module):
    """x [B, F] -> tanh(x·w0 + w1)·w2, the published 1×1 convolution and dense layer."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.w0, self.w1, self.w2 = (nn.Parameter(w) for w in weights)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w0 + self.w1).tanh() @ self.w2


def loss_of(flags: dict[str, Any]) -> losses.MetricLoss:
    sizes = {"num_classes": flags["C"], "dim": 4, "proxies_per_class": flags["K"]}
    params = flags["params"]
    if flags["function"] == "contrastive":
        return losses.ContrastiveLoss(**params, **sizes)
    if flags["function"] == "triplet":
        return losses.TripletLoss(margin=params["margin"], **sizes)
    named = {
        name: params[f"{published}_margin"]
        for name, published in (("alpha", "alpha"), ("beta", "beta"), ("base", "lambda"))
    }
    return losses.MultiSimilarityLoss(**named, normalize="ball", **sizes)


def pools(case: Case, model: nn.Module, data: Tensor) -> Iterator[EmbeddedPool]:
    """Pool after pool: the sampler's t-th span takes of each class its (t mod n_c)-th row."""
    size, labels = case.flags["pool"], case["y_train"]
    rows = [np.flatnonzero(labels == c) for c in range(case.flags["C"])]
    t = 0
    while True:
        picked = [row[(t + i) % len(row)] for row in rows for i in range(size)]
        t += size
        yield EmbeddedPool(model(data[picked]).detach(), torch.arange(len(rows) + 1) * size)


@pytest.mark.parametrize("name", TRAINED)
def test_trains_as_published(name: str) -> None:
    """The published metrics are the epoch before's: there the callback comes before the evaluation (quirk 1).

    Here it is the caller who says which weights a metric belongs to, so that telling the late one is enough.
    """
    case = load(name)
    flags = case.flags
    model = Net(
        [
            torch.tensor(case[f"w_init_{i}"]).reshape(case[f"w_init_{i}"].shape[-2:] if i != 1 else -1)
            for i in range(3)
        ]
    )
    loss = loss_of(flags)
    unit = flags.get("normalized_embeddings")
    ccp = AlternatingProjections(
        model,
        loss,
        pool_size=flags["pool"],
        lam=flags["regularization_coeff"],
        lam_decay=flags["coeff_decay"],
        patience=flags["early_stopping_patience"],
        pair_weight=flags["loss_weight"],
        proxy_weight=flags["ccp_weight"],
        stop_patience=None,
        normalize="unit" if unit else None,
    )
    optimizer = torch.optim.SGD(
        [*model.parameters(), loss.proxies], lr=flags["lr"], weight_decay=flags["weight_decay"]
    )
    ccp.attach(optimizer)
    pool = pools(case, model, torch.from_numpy(case["X_pool"]))
    ccp.project(lambda k: next(pool), seeds=torch.zeros_like(loss.proxies))
    first = class_major(case["proxies_epoch"][0], flags["C"])
    if unit:  # quirk 9: seen from zero all unit vectors are equally far, rounding picks the first
        with torch.no_grad():
            loss.proxies.copy_(first)
    assert_golden("first proxies", loss.proxies.detach().numpy(), first.numpy())

    images, labels = torch.from_numpy(case["X_train"]), torch.from_numpy(case["y_train"]).long()
    for step, batch in enumerate(torch.from_numpy(case["batch_indices"])):
        ccp.loss(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
        for i, weight in enumerate(model.parameters()):
            published = case[f"w_batch_{i}"][step].reshape(weight.shape)
            assert_golden(f"w{i} after step {step}", weight.detach().numpy(), published)
        published = class_major(case["proxies_batch"][step], flags["C"]).numpy()
        assert_golden(f"proxies after step {step}", loss.proxies.detach().numpy(), published)

        epoch, last = divmod(step + 1, flags["steps_per_epoch"])
        if last == 0:
            ccp.update(case["epoch_seen_metric"][epoch])
            assert ccp.due == case["epoch_ended"][epoch]
            if ccp.due:
                ccp.project(lambda k: next(pool))
            assert ccp.projection.lam == pytest.approx(case["epoch_lam_after"][epoch], rel=1e-6)
            published = class_major(case["proxies_epoch"][epoch], flags["C"]).numpy()
            assert_golden(f"proxies after epoch {epoch}", loss.proxies.detach().numpy(), published)
            if ccp.subproblem > 0:
                for i, previous in enumerate(anchor(ccp)):
                    published = case[f"prev_epoch_{i}"][epoch].reshape(previous.shape)
                    assert_golden(f"prev{i} after epoch {epoch}", previous.numpy(), published)
