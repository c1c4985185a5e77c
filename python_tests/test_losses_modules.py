"""The loss modules: which references they take, what they own, what they refuse."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ccp_fast import functional as F
from ccp_fast import losses, reference
from ccp_fast.distributed import ShardedLoss, ShardedProxies
from ccp_fast.losses import MetricLoss

CLASSES, PER_CLASS, DIM = 5, 3, 7
SIZES = {"num_classes": CLASSES, "dim": DIM, "proxies_per_class": PER_CLASS}
FUNCTIONS = {
    losses.ContrastiveLoss: F.contrastive,
    losses.TripletLoss: F.triplet,
    losses.MultiSimilarityLoss: F.multi_similarity,
    losses.ProxyNCALoss: F.proxy_nca,
    losses.ProxyAnchorLoss: F.proxy_anchor,
    losses.MarginSoftmaxLoss: F.margin_softmax,
    losses.SoftTripleLoss: F.soft_triple,
}
OPTIONS = {  # no default among them
    losses.ContrastiveLoss: {"pos_margin": 0.2, "neg_margin": 0.6, "distance": "cosine", "reduction": "sum"},
    losses.TripletLoss: {"margin": 0.3, "normalize": "unit", "reduction": "mean"},
    losses.MultiSimilarityLoss: {"alpha": 3.0, "beta": 20.0, "base": 0.2, "normalize": "ball"},
    losses.ProxyNCALoss: {
        "temperature": 0.5,
        "variant": "original",
        "assignment": "dynamic",
        "reduction": "sum",
    },
    losses.ProxyAnchorLoss: {"alpha": 8.0, "margin": 0.3, "reduction": "sum"},
    losses.MarginSoftmaxLoss: {"scale": 16.0, "margin": 0.3, "kind": "arcface", "reduction": "sum"},
    losses.SoftTripleLoss: {"scale": 10.0, "gamma": 0.5, "margin": 0.3, "tau": 0.1, "reduction": "sum"},
}
every_loss = pytest.mark.parametrize("kind", FUNCTIONS, ids=lambda kind: kind.__name__)


def batch(count: int = 11, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, DIM, generator=generator), torch.randint(CLASSES, (count,), generator=generator)


@every_loss
def test_keywords_and_defaults_are_those_of_the_function(kind: type[MetricLoss]) -> None:
    module = inspect.signature(kind).parameters
    function = inspect.signature(FUNCTIONS[kind]).parameters
    options = {name: p.default for name, p in function.items() if p.kind is p.KEYWORD_ONLY}
    assert options.pop("exclude_self") is False  # of a call, not of a loss
    assert {name: p.default for name, p in module.items() if name not in SIZES} == options
    assert kind(**SIZES).options == options


@every_loss
def test_equals_the_function(kind: type[MetricLoss]) -> None:
    """References are the given ones, else the proxies; `pairs` is the batch itself."""
    options = OPTIONS[kind]
    loss, function = kind(**SIZES, **options), FUNCTIONS[kind]
    (embeddings, labels), (ref_emb, ref_labels) = batch(), batch(6, seed=1)
    assert torch.equal(loss(embeddings, labels), function(embeddings, loss.proxies, labels, **options))
    assert torch.equal(
        loss(embeddings, labels, ref_emb, ref_labels),
        function(embeddings, ref_emb, labels, ref_labels, **options),
    )
    assert torch.equal(loss.pairs(embeddings, labels), function(embeddings, None, labels, **options))


@pytest.mark.parametrize("kind", [losses.ContrastiveLoss, losses.TripletLoss, losses.MultiSimilarityLoss])
def test_without_proxies_the_references_are_the_batch(kind: type[MetricLoss]) -> None:
    loss = kind()
    assert loss.proxies is None
    assert not list(loss.parameters())
    assert torch.equal(loss(*batch()), loss.pairs(*batch()))


@every_loss
def test_gradients_reach_embeddings_and_proxies(kind: type[MetricLoss]) -> None:
    loss = kind(**SIZES)
    embeddings, labels = batch()
    embeddings.requires_grad_()
    loss(embeddings, labels).backward()
    assert embeddings.grad.abs().sum() > 0
    assert loss.proxies.grad.shape == (CLASSES, PER_CLASS, DIM)
    assert loss.proxies.grad.abs().sum() > 0


@every_loss
def test_proxies_keep_their_dtype_under_autocast(kind: type[MetricLoss]) -> None:
    loss = kind(**SIZES)
    before = loss.proxies.detach().clone()
    network = torch.nn.Linear(4, DIM)
    _, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = network(torch.ones(len(labels), 4) * torch.arange(len(labels))[:, None])
        assert embeddings.dtype == torch.bfloat16
        value = loss(embeddings, labels)
    value.backward()
    assert loss.proxies.dtype == loss.proxies.grad.dtype == torch.float32
    assert torch.equal(loss.proxies, before)


def test_proxies_start_with_norms_near_one_and_follow_the_seed() -> None:
    torch.manual_seed(0)
    loss = losses.ProxyNCALoss(200, 128, 2)
    first = loss.proxies.detach().clone()
    assert first.shape == (200, 2, 128)
    assert first.norm(dim=2).mean() == pytest.approx(1, abs=0.02)
    assert first.mean() == pytest.approx(0, abs=0.002)
    loss.reset_parameters()
    assert not torch.equal(loss.proxies, first)
    torch.manual_seed(0)
    loss.reset_parameters()
    assert torch.equal(loss.proxies, first)


def test_state_and_copies_hold_the_proxies() -> None:
    loss, other = losses.ProxyAnchorLoss(**SIZES), losses.ProxyAnchorLoss(**SIZES)
    assert list(loss.state_dict()) == ["proxies"]
    other.load_state_dict(loss.state_dict())
    clone = copy.deepcopy(loss)
    assert clone.proxies is not loss.proxies
    assert torch.equal(loss(*batch()), other(*batch()))
    assert torch.equal(loss(*batch()), clone(*batch()))


@every_loss
def test_repr_tells_every_option_and_size(kind: type[MetricLoss]) -> None:
    text = repr(kind(**SIZES, **OPTIONS[kind]))
    for name, value in {**OPTIONS[kind], **SIZES}.items():
        assert f"{name}={value!r}" in text


def test_a_loss_of_ones_own() -> None:
    """What it takes to add one: a function and its keywords."""

    def margin_to_own(
        anchors: Tensor, references: Tensor | None, labels: Tensor, _: None, *, scale: float
    ) -> Tensor:
        assert references is not None
        return scale * (anchors - references[labels, 0]).norm(dim=1).mean()

    class PullLoss(MetricLoss):
        def __init__(self, *, scale: float, num_classes: int, dim: int) -> None:
            super().__init__(margin_to_own, num_classes, dim, 1, scale=scale)

    loss = PullLoss(scale=2.0, num_classes=CLASSES, dim=DIM)
    embeddings, labels = batch()
    expected = 2 * (embeddings - loss.proxies[labels, 0]).norm(dim=1).mean()
    assert loss(embeddings, labels) == expected


@pytest.mark.parametrize(
    "kind",
    [losses.ProxyNCALoss, losses.ProxyAnchorLoss, losses.MarginSoftmaxLoss, losses.SoftTripleLoss],
)
def test_proxy_losses_need_sizes(kind: type[MetricLoss]) -> None:
    with pytest.raises(TypeError, match="num_classes"):
        kind()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"num_classes": 3}, "num_classes, dim: expected both or neither, got 3 and None"),
        ({"dim": 3}, "num_classes, dim: expected both or neither, got None and 3"),
        ({"num_classes": 0, "dim": 3}, "num_classes: expected an integer of at least 1, got 0"),
        ({"num_classes": 2, "dim": 0}, "dim: expected an integer of at least 1, got 0"),
        (
            {"num_classes": 2, "dim": 3, "proxies_per_class": 0},
            "proxies_per_class: expected an integer of at least 1, got 0",
        ),
    ],
)
def test_refuses_sizes(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        losses.ContrastiveLoss(**sizes)


WRONG_OF_ALL = {"normalize": "l2", "reduction": "avg", "anchor": "class"}
WRONG = {
    losses.ContrastiveLoss: {"distance": "cos", "pos_margin": "wide", "neg_margin": None},
    losses.TripletLoss: {"margin": "wide"},
    losses.MultiSimilarityLoss: {"alpha": 0.0, "beta": -1.0, "base": "low"},
    losses.ProxyNCALoss: {"temperature": -1, "variant": "++", "assignment": "nearest"},
    losses.ProxyAnchorLoss: {"alpha": float("nan"), "margin": "wide"},
    losses.LiftedStructureLoss: {"variant": "both", "margin": "wide"},
    losses.MarginSoftmaxLoss: {"kind": "sphereface", "scale": 0, "margin": "wide"},
    losses.SoftTripleLoss: {"scale": 0, "gamma": -1, "margin": "wide", "tau": "much"},
}


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [(kind, *item) for kind, wrong in WRONG.items() for item in (wrong | WRONG_OF_ALL).items()],
)
def test_refuses_options_when_it_is_made(kind: type[MetricLoss], option: str, value: object) -> None:
    """In the words of the function."""
    others: dict[str, object] = {"kind": "arcface"} if kind is losses.MarginSoftmaxLoss else {}
    proxies = "num_classes" in signature(kind, with_default=False)
    options = others | ({"num_classes": 3, "dim": 4} if proxies else {})
    with pytest.raises(ValueError, match=rf"^{option}: expected .*, got ") as told:
        kind(**{**options, option: value})
    embeddings, labels = batch()
    with pytest.raises(ValueError, match=re.escape(str(told.value))):
        kind(**options).function(embeddings, None, labels, **{**others, option: value})


def signature(kind: type[MetricLoss], *, with_default: bool) -> set[str]:
    """Names of its parameters with a default, or of those without one."""
    parameters = inspect.signature(kind).parameters.values()
    return {p.name for p in parameters if (p.default is not p.empty) is with_default}


def test_options_of_a_sharded_loss_are_refused_too() -> None:
    with pytest.raises(ValueError, match="temperature: expected a number above 0, got -1"):
        ShardedLoss(F.proxy_nca, ShardedProxies(3, 1, DIM), temperature=-1)


@pytest.mark.parametrize("kind", [*FUNCTIONS, losses.LiftedStructureLoss])
def test_sizes_of_proxies_that_a_loss_may_do_without_are_keywords(kind: type[MetricLoss]) -> None:
    sizes = [inspect.signature(kind).parameters[name] for name in ("num_classes", "dim")]
    for size in sizes:
        assert (size.kind is size.KEYWORD_ONLY) == (size.default is None)


def test_refuses_half_of_the_references() -> None:
    loss = losses.ContrastiveLoss()
    embeddings, labels = batch()
    with pytest.raises(ValueError, match="expected both or neither, got no ref_labels"):
        loss(embeddings, labels, embeddings)
    with pytest.raises(ValueError, match="expected both or neither, got no ref_emb"):
        loss(embeddings, labels, None, labels)


@pytest.mark.parametrize(
    "wrong", [torch.tensor([0, CLASSES]), torch.tensor([-1, 0]), torch.tensor([0.0, 1.0])]
)
def test_labels_are_classes(wrong: Tensor) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"^labels: expected"):
        losses.ContrastiveLoss(**SIZES)(torch.zeros(2, DIM), wrong)


@pytest.mark.parametrize("described", [F.contrastive, losses.ContrastiveLoss, reference.contrastive])
def test_c1_as_it_is_described_is_of_cosines(described: Callable[..., object]) -> None:
    """Lengths of vectors make no difference."""
    text = " ".join((inspect.getdoc(described) or "").split())
    recipe = re.search(r"C1 (?:of that paper )?is ((?:\w+=\S+, )*\w+=\S+)\.", text)
    assert recipe is not None, text
    options = {name: value.strip('"') for name, value in (p.split("=") for p in recipe[1].split(", "))}
    embeddings, labels = batch()
    for function in (F.contrastive, reference.contrastive):
        torch.testing.assert_close(
            function(embeddings, None, labels, **options), function(embeddings / 9, None, labels, **options)
        )
