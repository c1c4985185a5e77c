"""The trainer's methods: what each minimises, and that a run of any goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_training
import torch
from helpers import assert_same_state
from training_runs import QUIET, assert_same_results, check_page, tiny_data  # noqa: F401

pytest.importorskip("safetensors")

from ccp_fast.nn import IntraBatchLoss
from ccp_fast.reference.pairs import normalise
from ccp_fast.training import trainer
from ccp_fast.training.config import load_config
from ccp_fast.training.errors import UserError
from ccp_fast.training.learner import Learner
from ccp_fast.training.methods import METHODS, run_name, title
from ccp_fast.training.methods.alternating import Alternating
from ccp_fast.training.methods.ccp import Ccp
from ccp_fast.training.methods.xbm import Xbm
from ccp_fast.training.model import embed
from ccp_fast.training.objective import PRESETS
from ccp_fast.training.report import write_run_report
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.schedule import rate_factor
from ccp_fast.training.settings import Config

PROXY_LOSSES = [name for name, preset in PRESETS.items() if preset.needs_proxies]
NO_WARM_UP = "optimizer.proxy_warm_up=0"


def learner(*settings: str) -> Learner:
    config = tiny_training.config(*settings)
    return Learner(config, tiny_training.images("train"))


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("method", ["alternating", "xbm"])
def test_a_form_of_the_loss_that_takes_no_references(method: str) -> None:
    settings = ["loss.name=lifted_structure", "loss.options.variant=pair"]
    learner(*settings, "method=plain").train_step()
    with pytest.raises(UserError, match=r'^loss.options: references: expected None, .*variant="pair"'):
        learner(*settings, f"method={method}")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loss", PRESETS)
def test_every_loss_trains_with_every_method_it_fits(loss: str, method: str) -> None:
    settings = [f"loss.name={loss}", f"method={method}", "optimizer.schedule=cosine"]
    if loss in PROXY_LOSSES and method in ("alternating", "xbm"):
        with pytest.raises(
            UserError, match=rf"loss.name: .*\(c1, c2, .*\) with method '{method}', got '{loss}'"
        ):
            learner(*settings)
        return
    one = learner(*settings)
    before = weights(one.model)
    losses = [one.train_step() for _ in range(12)]
    assert all(0 < value < float("inf") for value in losses)
    assert all(not torch.equal(p, before[name]) for name, p in one.model.named_parameters())
    proxies = getattr(one.criterion, "proxies", None)
    if method == "ccp":
        assert proxies is not None
        assert proxies.shape == (12, 2, 8)
        assert [record.step for record in one.method.subproblems] == [6, 11]
    else:
        assert (proxies is not None) == (loss in PROXY_LOSSES and method == "plain")
        assert one.method.subproblems == []
    assert one.optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 * rate_factor("cosine", 11, 24))


@pytest.mark.parametrize(
    "settings",
    [
        ["method=plain"],
        ["method=plain", "loss.name=proxy_anchor", "optimizer.proxies=hundredfold"],
        ["method=alternating", "alternating.lifetime=3"],
        ["method=alternating", "alternating.lifetime=20", "alternating.hard_classes=false"],
        ["method=intra-batch", "optimizer.name=radam"],
        ["method=xbm", "xbm.size=30"],
        ["method=ccp", "ccp.pool=memory"],
        ["method=ccp", "optimizer.ema_decay=0.9", "optimizer.clip_norm=0.5", "compute.precision=bf16"],
    ],
    ids=" ".join,
)
def test_a_crashed_run_of_any_method_goes_on_to_the_same_bits(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CCP's with pools embedded anew, and a process that is killed: `test_training.py`."""
    config = tiny_training.config(*settings)
    trainer.train(config, tmp_path / "unbroken", QUIET)
    step = Learner.train_step

    def crash(one: Learner) -> float:
        if one.step == 14:  # between two evaluations
            raise RuntimeError("power cut")
        return step(one)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            trainer.train(config, tmp_path / "broken", QUIET)
    torch.manual_seed(99)
    trainer.resume(tmp_path / "broken", QUIET)
    assert_same_results(tmp_path / "unbroken", tmp_path / "broken")
    page = write_run_report(RunFolder.open(tmp_path / "broken")).read_text()
    check_page(page)
    assert f"<h1>{title(config)}</h1>" in page


def test_titles_and_names() -> None:
    names = {
        name: (title(c), run_name(c))
        for name, c in ((n, load_config(settings=[f"method={n}"])) for n in METHODS)
    }
    assert names["plain"] == ("C2 (Euclidean contrastive)", "glyphs-c2-plain")
    assert names["ccp"] == ("C2 (Euclidean contrastive) with CCP", "glyphs-c2-ccp")
    assert names["xbm"] == ("C2 (Euclidean contrastive) with a cross-batch memory", "glyphs-c2-xbm")
    assert names["intra-batch"] == ("Intra-batch connections", "glyphs-intra-batch")


# Rates


def test_proxies_learn_alone_at_first_and_a_hundred_times_faster() -> None:
    one = learner(
        "method=plain",
        "loss.name=proxy_anchor",
        "optimizer.proxies=hundredfold",
        "optimizer.proxy_warm_up=0.5",
    )
    assert [g["lr"] for g in one.optimizer.param_groups] == pytest.approx([1e-3, 0.1])
    steps = one.optimization.warm_up
    assert steps == 5  # half of 72 images in batches of 8, rounded up
    before, proxies = weights(one.model), weights(one.criterion)["proxies"]
    for _ in range(steps):
        one.train_step()
    assert all(torch.equal(p, before[name]) for name, p in one.model.named_parameters())
    assert (one.criterion.proxies - proxies).abs().mean() > 0.05
    one.train_step()
    assert all(not torch.equal(p, before[name]) for name, p in one.model.named_parameters())


@pytest.mark.parametrize("frozen_norms", [False, True])
def test_the_embedding_may_learn_with_the_proxies_at_first(frozen_norms: bool) -> None:
    """As in Proxy-Anchor's code; running statistics move in a warm-up unless they are frozen altogether."""
    one = learner(
        "method=plain",
        "loss.name=proxy_anchor",
        "optimizer.warm_up_embedding=true",
        f"model.frozen_norms={frozen_norms}",
    )
    before, statistics = weights(one.model), {n: b.clone() for n, b in one.model.named_buffers()}
    for _ in range(one.optimization.warm_up):
        one.train_step()
    moved = {name for name, p in one.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"embedding.weight", "embedding.bias"}
    assert all(torch.equal(b, statistics[n]) == frozen_norms for n, b in one.model.named_buffers())
    one.train_step()
    assert sum(not torch.equal(p, before[name]) for name, p in one.model.named_parameters()) > 2


@pytest.mark.parametrize(
    ("settings", "factor", "warm_up"),
    [
        ([], 100, 9),
        (["loss.name=proxy_anchor"], 100, 9),
        (["loss.name=soft_triple"], 100, 9),
        (["loss.name=margin_softmax"], 1, 0),
        (["loss.name=c2", "loss.proxies_per_class=2"], 1, 0),
        (["optimizer.proxies=same"], 1, 0),
        (["optimizer.proxies=hundredfold"], 100, 9),
        (["optimizer.proxies=hundredfold", "optimizer.proxy_lr_factor=0.07"], 7, 9),
        (["optimizer.proxies=same", "optimizer.proxy_lr_factor=7"], 7, 0),
        (["optimizer.proxies=hundredfold", "optimizer.proxy_warm_up=2"], 100, 18),
        (["method=ccp"], 1, 0),
        (["method=ccp", "optimizer.proxy_lr_factor=7"], 7, 0),
        (["loss.name=c2"], None, 0),
    ],
    ids=str,
)
def test_presets_of_the_proxies_rate(settings: list[str], factor: float | None, warm_up: int) -> None:
    one = learner("method=plain", "loss.name=proxy_nca", *settings)
    rates = [group["lr"] / 1e-3 for group in one.optimizer.param_groups]
    assert rates == pytest.approx([1] if factor is None else [1, factor])
    assert one.optimization.warm_up == warm_up


@pytest.mark.parametrize("setting", ["optimizer.proxies=hundredfold", "optimizer.proxy_warm_up=1"])
def test_ccp_has_no_warm_up_of_proxies(setting: str) -> None:
    with pytest.raises(UserError, match=r"^optimizer.proxy_warm_up: expected 0 with CCP, .* got 1$"):
        learner("method=ccp", setting)
    learner("method=ccp", setting, NO_WARM_UP)


# What each method does


def test_alternating_projects_onto_one_set_after_the_other() -> None:
    one = learner(
        "method=alternating", "alternating.lifetime=5", "alternating.lam=0.5", "alternating.warm_start=0.4"
    )
    method = one.method
    assert isinstance(method, Alternating)
    start = weights(one.model)
    for _ in range(5):
        one.train_step()
        assert method.projection.lam == 0
    reached = weights(one.model)
    one.train_step()
    assert method.projection.lam == 0.5
    for name, before in method.projection.state_dict().items():
        if name.startswith("previous."):
            assert torch.equal(before, reached[name.removeprefix("previous.")])
            assert not torch.equal(before, start[name.removeprefix("previous.")])
    assert method.sampler.state_dict()["class_vectors"] is None  # step 10 is the first in which it mines
    while one.step < 10:
        one.train_step()
    images = one.data.plain_batches(method.sampler.representatives(10))
    expected = normalise(embed(one.model, images), method.normalize)
    one.train_step()
    assert torch.equal(method.sampler.state_dict()["class_vectors"], expected)
    assert one.clock.seconds["reinitialisation"] > 0
    assert one.clock.seconds["projection"] > 0


def test_alternating_pairs_samples_with_representatives_alone() -> None:
    one = learner("method=alternating", "loss.name=c1", "loss.options.neg_margin=0.0")
    chosen = torch.tensor(one.method.sampler.batch(0))
    labels = one.data.labels[chosen]
    embeddings = torch.randn(8, 8, requires_grad=True)
    value = one.method.loss(embeddings, labels)
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    s = unit[4:] @ unit[:4].T
    same = labels[4:, None] == labels[:4]
    expected = (torch.where(same, 1 - s, s.relu()).sum()) / 4
    torch.testing.assert_close(value, expected)


def test_ccp_chooses_among_what_training_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner("method=ccp", "ccp.pool=memory")
    method = one.method
    assert isinstance(method, Ccp)
    computed: dict[int, list[torch.Tensor]] = {c: [] for c in range(12)}
    forward = type(one.model).forward

    def remembering(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        embeddings = forward(model, images)
        assert model.training  # no pool is embedded
        for c, embedding in zip(
            one.data.labels[one.method.sampler.batch(one.step)].tolist(), embeddings, strict=True
        ):
            computed[c].append(embedding.detach())
        return embeddings

    monkeypatch.setattr(type(one.model), "forward", remembering)
    for _ in range(6):  # the warm start: two passes over the classes, two images each
        one.train_step()
    proxies = method._pool(0).embeddings.view(12, 4, 8)
    assert all(torch.equal(proxies[c], torch.stack(computed[c])) for c in range(12))
    one.train_step()
    (record,) = method.subproblems
    assert (record.step, record.classes_kept) == (6, 0)
    assert one.clock.seconds["reinitialisation"] > 0


def test_ccp_embeds_a_pool_where_the_first_proxies_would_be_random() -> None:
    one = learner("method=ccp", "ccp.pool=memory", "ccp.warm_start=0")
    fresh = learner("method=ccp", "ccp.warm_start=0")
    for each in (one, fresh):
        each.train_step()
    assert torch.equal(one.criterion.proxies, fresh.criterion.proxies)
    for _ in range(5):
        one.train_step()
        fresh.train_step()
    assert [r.step for r in one.method.subproblems] == [0, 5]
    assert one.method.subproblems[1].radius_mean != fresh.method.subproblems[1].radius_mean


def test_xbm_meets_what_came_before() -> None:
    one = learner("method=xbm", "xbm.size=20", "xbm.warm_up=0.25")
    method = one.method
    assert isinstance(method, Xbm)
    for step in range(8):
        assert method.memory.steps == step
        assert method.memory.fill == min(8 * step, 20)
        one.train_step()
    assert method.memory.warm_up == 6
    images, labels = one.data.batch(8, method.sampler.batch(8))
    with torch.no_grad():
        embeddings = one.model(images)
        in_batch = method.metric_loss.pairs(embeddings, labels)
        assert method.loss(embeddings, labels) > in_batch


def test_intra_batch_trains_its_heads_with_the_network_and_searches_without() -> None:
    one = learner("method=intra-batch", "optimizer.name=radam", "optimizer.schedule=drop")
    assert isinstance(one.criterion, IntraBatchLoss)
    (group,) = one.optimizer.param_groups
    assert isinstance(one.optimizer, torch.optim.RAdam)
    assert len(group["params"]) == len(list(one.model.parameters())) + len(list(one.criterion.parameters()))
    before = weights(one.criterion)
    for _ in range(7):  # RAdam's first steps are plain momentum
        one.train_step()
    moved = {name for name, p in one.criterion.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys() - {"neck.bias"}
    (images,) = one.data.plain_batches(torch.arange(6))
    alone = embed(one.model, images.split(1))
    torch.testing.assert_close(
        embed(one.model, [images]), alone
    )  # of others a sample's embedding knows nothing
    assert one.method.normalize == "unit"


def test_heads_that_do_not_divide_an_embedding_are_told_in_the_words_of_the_settings() -> None:
    with pytest.raises(
        UserError, match=r"^intra_batch\.heads: expected a divisor of model\.dim = 100, got 8$"
    ):
        learner("method=intra-batch", "model.dim=100")


def test_the_sampler_refuses_in_the_words_of_the_settings() -> None:
    for method in METHODS:
        with pytest.raises(
            UserError, match=r"^batch.classes: expected at most 12, the number of classes, got 900$"
        ):
            learner(f"method={method}", "batch.classes=900")


def test_the_default_is_ccp() -> None:
    assert Config().method == "ccp"
    assert set(METHODS) == {"plain", "ccp", "alternating", "intra-batch", "xbm"}


@pytest.mark.parametrize("method", ["plain", "ccp"])
def test_a_state_from_before_there_were_methods_loads(method: str) -> None:
    one, other = learner(f"method={method}"), learner(f"method={method}", "seed=1")
    for _ in range(8):
        one.train_step()
    state = one.state_dict()
    state["ccp"] = state.pop("method") or None
    other.load_state_dict(state)
    assert other.method.subproblem == one.method.subproblem
    assert_same_state(other.method.state_dict(), one.method.state_dict())
