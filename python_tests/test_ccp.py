"""The CCP algorithm: when sub-problems end, what they start from, what is remembered, resuming to the bit."""

from __future__ import annotations

import pytest
import torch
from ccp_run import CLASSES, DIM, FEATURES, PER_CLASS, POOL, Run, assert_same, differ, outcomes, three_states
from helpers import one_thread  # noqa: F401
from torch import Tensor, nn

from ccp_fast import functional as F
from ccp_fast import losses
from ccp_fast.ccp import AlternatingProjections, EmbeddedPool

# ---- when a sub-problem ends


def test_ends_after_patience_without_gain() -> None:
    run = Run(patience=2)
    run.step()
    assert outcomes(run, 0.5, 0.6, 0.6, 0.55) == ["continue", "continue", "continue", "subproblem_ended"]
    assert run.ccp.due
    run.step()
    assert run.ccp.subproblem == 1
    # a sub-problem looks for a best of its own, however bad
    assert outcomes(run, 0.1, 0.2, 0.2, 0.2) == ["continue", "continue", "continue", "subproblem_ended"]
    assert run.ccp.best_metric == 0.6


def test_gains_must_exceed_min_delta() -> None:
    run = Run(patience=1, min_delta=0.1)
    run.step()
    assert outcomes(run, 0.5, 0.65) == ["continue", "continue"]
    assert outcomes(run, 0.7) == ["subproblem_ended"]


def test_smaller_is_better() -> None:
    run = Run(patience=1, monitor="min")
    run.step()
    assert outcomes(run, 0.5, 0.4, 0.45) == ["continue", "continue", "subproblem_ended"]
    assert run.ccp.best_metric == 0.4


def test_nan_is_no_gain() -> None:
    run = Run(patience=2)
    run.step()
    nan = float("nan")
    assert outcomes(run, nan, 0.3, nan, 0.2) == ["continue", "continue", "continue", "subproblem_ended"]
    assert run.ccp.best_metric == 0.3


def test_finishes_after_stop_patience_over_all_sub_problems() -> None:
    run = Run(patience=1, stop_patience=3)
    run.step()
    assert outcomes(run, 0.9, 0.5) == ["continue", "subproblem_ended"]
    run.step()
    assert outcomes(run, 0.6) == ["continue"]  # best of the sub-problem, not of the run
    assert not run.ccp.finished
    assert outcomes(run, 0.7) == ["finished"]
    assert run.ccp.finished


def test_schedule_counts_optimizer_steps() -> None:
    run = Run(project_every=4, patience=1)
    ended = []
    for _ in range(12):
        run.step()
        ended.append(run.ccp.update(0.1))
    assert ended == ["continue", "continue", "continue", "subproblem_ended"] * 3
    assert [record.step for record in run.ccp.history] == [0, 4, 8]


# ---- the loss


def test_warm_start_is_the_loss_within_the_batch() -> None:
    run = Run(warm_start=3)
    embeddings, labels = torch.randn(8, DIM), torch.arange(8) % CLASSES
    for _ in range(3):
        assert run.ccp.subproblem == -1
        assert run.ccp.loss(embeddings, labels) == run.loss.pairs(embeddings, labels)
        assert run.ccp.update(0.5) == "continue"
        run.step()
    assert run.ccp.due
    run.ccp.project(run.embed)
    expected = 0.1 * run.loss.pairs(embeddings, labels) + run.loss(embeddings, labels)
    assert run.ccp.loss(embeddings, labels) == expected


def test_warm_start_leaves_the_proxies_alone_and_evaluations_uncounted() -> None:
    run = Run(warm_start=2, patience=1, stop_patience=2)
    before = run.weights()["proxies"]
    outcomes(run, 0.5, 0.4, 0.3, 0.2)
    run.step()
    assert torch.equal(run.loss.proxies, before)
    run.step()
    run.step()
    assert outcomes(run, 0.4, 0.3) == ["continue", "finished"]


def test_weights_of_the_two_parts() -> None:
    run = Run(pair_weight=0.0, proxy_weight=0.5)
    run.step()
    embeddings, labels = torch.randn(8, DIM), torch.arange(8) % CLASSES
    assert run.ccp.loss(embeddings, labels) == 0.5 * run.loss(embeddings, labels)


def test_loss_wants_attach_and_project_first() -> None:
    model, loss = nn.Linear(FEATURES, DIM), losses.ContrastiveLoss(num_classes=CLASSES, dim=DIM)
    ccp = AlternatingProjections(model, loss, pool_size=POOL, lam=0.1)
    with pytest.raises(RuntimeError, match=r"expected `attach\(optimizer\)` before the first step"):
        ccp.loss(torch.zeros(2, DIM), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="expected `project` after step 0"):
        Run().ccp.loss(torch.zeros(2, DIM), torch.zeros(2, dtype=torch.int64))


# ---- what a sub-problem starts from


def test_previous_weights_are_the_best_and_the_live_ones_go_on() -> None:
    run = Run()
    _, best, live = three_states(run)
    run.ccp.project(run.embed)
    assert_same(run.anchor(), {name: best[name] for name in run.anchor()})
    assert not differ(run.weights(), {name: live[name] for name in live if name != "proxies"})


def test_proxies_are_the_picks_seeded_by_the_best_proxies() -> None:
    run = Run()
    _, best, _ = three_states(run)
    pool = run.embed(0)
    run.ccp.project(lambda k: pool)
    picks = F.farthest_points(
        pool.embeddings, PER_CLASS, offsets=pool.offsets, seeds=best["proxies"], normalize="ball"
    ).indices
    assert torch.equal(run.loss.proxies, pool.embeddings[picks])


def test_unseeded_choices_see_the_pool_alone() -> None:
    run = Run(seeded=False)
    three_states(run)
    pool = run.embed(0)
    run.ccp.project(lambda k: pool)
    picks = F.farthest_points(pool.embeddings, PER_CLASS, offsets=pool.offsets, normalize="ball").indices
    assert torch.equal(run.loss.proxies, pool.embeddings[picks])


def test_first_proxies_have_no_seeds() -> None:
    run = Run()
    pool = run.embed(0)
    run.ccp.project(lambda k: pool)
    picks = F.farthest_points(pool.embeddings, PER_CLASS, offsets=pool.offsets, normalize="ball").indices
    assert torch.equal(run.loss.proxies, pool.embeddings[picks])


def test_k_center_sees_vectors_as_the_loss_or_as_told() -> None:
    """Far away along one direction are two points that are one point of the unit ball."""
    points = torch.tensor([[9.0, 0, 0, 0], [5.0, 0, 0, 0], [0, 2.0, 0, 0]]).repeat(CLASSES, 1)
    pool = EmbeddedPool(points, torch.arange(CLASSES + 1) * 3)
    zeros = torch.zeros(CLASSES, 1, DIM)
    picks = {}
    for how in ("loss", None):
        run = Run(normalize=how)
        run.ccp.project(lambda k: pool, seeds=zeros)
        picks[how] = run.loss.proxies.detach()
    # all are at distance 1 from zero in the ball: the lowest index, then what is farthest from it
    assert torch.equal(picks["loss"][0], points[[0, 2]])
    assert torch.equal(picks[None][0], points[[0, 1]])


def test_without_a_number_the_solution_is_what_is_live() -> None:
    run = Run(patience=1)
    run.step()
    run.step()
    run.ccp.update(float("nan"))
    live = run.weights()
    run.ccp.project(run.embed)
    assert_same(run.anchor(), {name: live[name] for name in run.anchor()})


def test_lambda_is_zero_first_and_decays_before_use() -> None:
    run = Run(lam=0.2, lam_decay=0.5)
    lams = []
    for _ in range(4):
        lams.append(run.ccp.project(run.embed).lam)
        assert run.ccp.projection.lam == lams[-1]
    assert lams == [0.0, 0.1, 0.05, 0.025]


def test_the_proximal_term_pulls_the_network_and_not_the_proxies() -> None:
    """With an empty loss, plain SGD of rate 1 moves w by lam·(w_prev − w)."""
    run = Run(lam=0.25)
    three_states(run)
    run.ccp.project(run.embed)
    optimizer = torch.optim.SGD([*run.model.parameters(), run.loss.proxies], lr=1.0)
    run.ccp.projection.attach(optimizer)
    before, anchor = run.weights(), run.anchor()
    for parameter in [*run.model.parameters(), run.loss.proxies]:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, tensor in run.weights().items():
        expected = before[name] - 0.25 * (before[name] - anchor[name]) if name in anchor else before[name]
        torch.testing.assert_close(tensor, expected)


def test_the_proximal_term_by_hand_in_a_closure() -> None:
    hooked, by_hand = Run(project_every=2), Run(project_every=2, hook=False)
    for _ in range(6):
        hooked.step()
        if by_hand.ccp.due:
            by_hand.ccp.project(by_hand.embed)

        def closure() -> torch.Tensor:
            by_hand.optimizer.zero_grad()
            samples, labels = by_hand.batch(by_hand.ccp.steps)
            value = by_hand.ccp.loss(by_hand.model(samples), labels)
            value.backward()
            by_hand.ccp.projection.step_()
            return value

        by_hand.optimizer.step(closure)
    assert by_hand.ccp.projection.lam > 0
    assert by_hand.ccp.steps == 6
    assert_same(by_hand.weights(), hooked.weights())


def test_reload_best_starts_from_the_best() -> None:
    run = Run(reload_best=True)
    _, best, _ = three_states(run)
    embedded_with = {}

    def embed(k: int) -> EmbeddedPool:
        embedded_with.update(run.weights())
        return run.embed(k)

    run.ccp.project(embed)
    assert_same(embedded_with, best)
    assert not differ(run.weights(), {name: best[name] for name in best if name != "proxies"})


def test_optimizer_forgets_the_old_proxies_only() -> None:
    run = Run()
    three_states(run)
    moments = {p: run.optimizer.state[p]["exp_avg"].clone() for p in run.model.parameters()}
    run.ccp.project(run.embed)
    assert run.loss.proxies not in run.optimizer.state
    assert all(torch.equal(run.optimizer.state[p]["exp_avg"], moment) for p, moment in moments.items())
    run.step()
    assert run.optimizer.state[run.loss.proxies]["step"] == 1


def test_optimizer_may_keep_its_moments() -> None:
    run = Run(reset_optimizer_state=False)
    three_states(run)
    run.ccp.project(run.embed)
    assert run.optimizer.state[run.loss.proxies]["step"] == 3


def test_proxies_in_an_optimizer_of_their_own() -> None:
    model, loss = nn.Linear(FEATURES, DIM), losses.ContrastiveLoss(num_classes=CLASSES, dim=DIM)
    ccp = AlternatingProjections(model, loss, pool_size=POOL, lam=0.1)
    network_optimizer, proxy_optimizer = (
        torch.optim.Adam(model.parameters()),
        torch.optim.Adam(loss.parameters()),
    )
    with pytest.raises(ValueError, match=r"^optimizer: expected the loss's proxies among its parameters"):
        ccp.attach(network_optimizer)
    ccp.attach(network_optimizer, proxy_optimizer)
    proxy_optimizer.state[loss.proxies]["exp_avg"] = torch.ones(1)
    ccp.project(lambda k: EmbeddedPool(torch.randn(CLASSES * 2, DIM), torch.arange(CLASSES + 1) * 2))
    assert not proxy_optimizer.state
    network_optimizer.step()
    proxy_optimizer.step()
    assert ccp.steps == 1


def test_ablations() -> None:
    def fail(k: int) -> EmbeddedPool:
        raise AssertionError("no pool was expected here")

    run = Run(reinitialize=False)
    three_states(run)
    live = run.weights()
    record = run.ccp.project(fail)
    assert_same(run.weights(), live)
    assert (record.classes_kept, record.radius_mean) == (CLASSES, None)
    assert run.optimizer.state[run.loss.proxies]["step"] == 3

    run = Run(initialize=False)
    before = run.weights()
    run.ccp.project(fail)
    assert_same(run.weights(), before)
    run.ccp.project(run.embed)
    assert differ(run.weights(), {"proxies": before["proxies"]})


# ---- pools that do not fit


def ragged(*sizes: int) -> EmbeddedPool:
    points = torch.randn(sum(sizes), DIM, generator=torch.Generator().manual_seed(3))
    return EmbeddedPool(points, torch.tensor([0, *sizes]).cumsum(0))


def test_absent_class_keeps_its_proxies() -> None:
    run = Run()
    before, pool = run.weights()["proxies"], ragged(4, 0, 4, 4, 0)
    record = run.ccp.project(lambda k: pool)
    after = run.loss.proxies.detach()
    assert record.classes_kept == 2
    assert [torch.equal(a, b) for a, b in zip(after, before, strict=True)] == [
        False,
        True,
        False,
        False,
        True,
    ]


def test_class_with_one_sample_repeats_it() -> None:
    run, pool = Run(), ragged(1, 4, 4, 4, 4)
    run.ccp.project(lambda k: pool)
    assert torch.equal(run.loss.proxies[0], pool.embeddings[[0, 0]])
    assert not torch.equal(run.loss.proxies[1, 0], run.loss.proxies[1, 1])


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (ragged(2, 2, 2), r"pool: expected offsets of shape \[6\] for 5 classes, got \[4\]"),
        (ragged(1, POOL + 1, 1, 1, 1), "pool: expected at most pool_size = 6 embeddings per class, got 7"),
        (ragged(0, 0, 0, 0, 0), r"pool: expected embeddings of shape \[N > 0, 4\], got \[0, 4\]"),
        (
            EmbeddedPool(torch.zeros(5, 3), torch.arange(6)),
            r"pool: expected embeddings of shape \[N > 0, 4\], got \[5, 3\]",
        ),
        (EmbeddedPool(torch.full((5, DIM), torch.nan), torch.arange(6)), "points: expected"),
    ],
)
def test_bad_pool_changes_nothing(pool: EmbeddedPool, message: str) -> None:
    run = Run()
    three_states(run)
    weights, anchor, state = run.weights(), run.anchor(), run.ccp.state_dict()
    with pytest.raises((ValueError, RuntimeError), match=message):
        run.ccp.project(lambda k: pool)
    assert_same(run.weights(), weights)
    assert_same(run.anchor(), anchor)
    assert (run.ccp.subproblem, run.ccp.projection.lam) == (0, 0.0)
    assert run.ccp.state_dict()["stale"] == state["stale"]
    assert run.loss.proxies in run.optimizer.state


def test_record_measures_proxies() -> None:
    run = Run(normalize=None)
    _, best, _ = three_states(run)
    pool = run.embed(0)
    record = run.ccp.project(lambda k: pool)

    def radii(proxies: Tensor) -> Tensor:
        points = pool.embeddings.view(CLASSES, POOL, DIM)
        return torch.cdist(points, proxies).amin(2).amax(1)

    def spread(proxies: Tensor) -> Tensor:
        return (proxies[:, 0] - proxies[:, 1]).norm(dim=1).mean()

    new = run.loss.proxies.detach()
    assert record.index == 1
    assert record.step == 3
    assert record.radius_mean == pytest.approx(float(radii(new).mean()), rel=1e-5)
    assert record.radius_max == pytest.approx(float(radii(new).max()), rel=1e-5)
    assert record.previous_radius_mean == pytest.approx(float(radii(best["proxies"]).mean()), rel=1e-5)
    assert record.spread == pytest.approx(float(spread(new)), rel=1e-5)
    assert record.previous_spread == pytest.approx(float(spread(best["proxies"])), rel=1e-5)
    assert record.milliseconds > 0
    assert run.ccp.history[-1] is record


# ---- the best of the run


def test_restore_best_brings_back_weights_buffers_and_proxies() -> None:
    run = Run(patience=2)
    _, best, live = three_states(run)
    assert not torch.equal(best["1.running_mean"], live["1.running_mean"])
    run.ccp.update(0.3)
    run.step()
    run.ccp.update(0.4)  # best of sub-problem 1 only
    assert run.ccp.restore_best() == 0.5
    assert_same(run.weights(), best)


def test_best_may_be_of_the_warm_start() -> None:
    run = Run(warm_start=1)
    run.step()
    run.ccp.update(0.9)
    best = run.weights()
    run.step()
    run.ccp.update(0.2)
    assert run.ccp.restore_best() == 0.9
    assert_same(run.weights(), best)


def test_nothing_to_restore() -> None:
    run = Run()
    run.step()
    run.ccp.update(float("nan"))
    before = run.weights()
    assert run.ccp.restore_best() is None
    assert_same(run.weights(), before)


def test_frozen_parameters_stay() -> None:
    run = Run()
    run.model[0].weight.requires_grad_(False)
    before = run.model[0].weight.detach().clone()
    for _ in range(3):
        three_states(run)
        run.ccp.project(run.embed)
    assert torch.equal(run.model[0].weight, before)


def test_wrapped_model() -> None:
    """The same numbers as the model itself."""
    plain, wrapped = Run(), Run(wrap=True)
    for run in (plain, wrapped):
        three_states(run)
        run.step()
        run.ccp.project(run.embed)
        run.step()
        run.ccp.restore_best()
    assert_same({name.removeprefix("module."): t for name, t in wrapped.weights().items()}, plain.weights())
