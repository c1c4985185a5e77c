"""The fused losses, forward and backward, gradients of embeddings and proxies.

The inputs look like a trained embedding: proxies of a class lie together, classes come in groups of
look-alikes, so that hinge losses have a few active negatives; "-all-active" is the other extreme. A "collapsed"
shape's look like those of an untrained network: all cosines are above 0.95. Norms differ from one, so that
normalising is work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ccp_fast import functional
from ccp_fast.bench.baselines import by_hand, pairs, peers, truth
from ccp_fast.bench.case import CPU, Aim, Case, Implementation, Outputs, Place, Precision, Size, Step, Work
from ccp_fast.bench.cases import kernel_work
from ccp_fast.bench.launch import KernelWork, Launch

FAMILY = "losses"
BATCH_CLASSES = 32
GROUP = 16  # classes that look alike
COLLAPSED = 0.1  # how far from one unit vector all embeddings are then
AT_ONCE = 1 << 28  # pairs whose gradients are counted together
# From a margin: how far a distance may be off. Products of bfloat16 are exact, and added up in float32.
_ON_A_MARGIN: dict[Precision, float] = {"float32": 2e-6, "tf32": 2e-3, "bfloat16": 2e-6}

Call = Callable[[Tensor, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """M anchors against C classes of K proxies, or against each other where classes is 0."""

    anchors: int
    dim: int
    classes: int
    per_class: int
    collapsed: bool = False  # all near one point, as an untrained network's

    def __str__(self) -> str:
        """As shown."""
        references = f"{self.classes:,} x {self.per_class}" if self.classes else f"{self.anchors}"
        return f"{self.anchors} vs {references}, {self.dim}-D" + ", near one point" * self.collapsed


_FULL = {
    "sop": Shape(128, 128, 11_318, 4),
    "sop-512": Shape(128, 512, 11_318, 4),
    "1e5": Shape(128, 128, 25_000, 4),
    "batch": Shape(128, 128, 0, 0),
}
_QUICK = {
    "sop": Shape(128, 128, 256, 4),
    "sop-512": Shape(128, 512, 256, 4),
    "1e5": Shape(128, 128, 512, 4),
    "batch": Shape(128, 128, 0, 0),
}
_TOY = {
    "sop": Shape(64, 16, 40, 4),
    "sop-512": Shape(64, 32, 40, 4),
    "1e5": Shape(64, 16, 60, 4),
    "batch": Shape(64, 16, 0, 0),
}
SHAPES: dict[Size, dict[str, Shape]] = {"full": _FULL, "quick": _QUICK, "toy": _TOY}


@dataclass(frozen=True)
class Loss:
    """One loss in all its versions, which share the stem as their name in every module of `baselines`."""

    name: str
    stem: str
    options: dict[str, float]
    dense: bool  # every pair has a gradient
    settings: tuple[str, ...] = ("sop", "sop-512", "1e5", "batch")
    one_proxy: bool = False  # K = 1 and as many classes as there would be proxies

    @property
    def ours(self) -> Call:
        """The fused one."""
        return partial(_OURS[self.stem], **self.options)

    @property
    def eager(self) -> pairs.PairLoss:
        """Of similarities."""
        return partial(getattr(pairs, self.stem), **self.options)

    @property
    def by_hand(self) -> by_hand.Loss:
        """Value and gradient."""
        loss: by_hand.Loss = getattr(by_hand, self.stem)(**self.options)
        return loss

    @property
    def has_peer(self) -> bool:
        """Does pytorch-metric-learning have it?"""
        return hasattr(peers, self.stem)

    @property
    def margins(self) -> list[str]:
        """The options at which a pair's term begins; none of a dense loss."""
        return [] if self.dense else list(self.options)

    def peer(self) -> Call:
        """Its class there, ready to be called."""
        call: Call = getattr(peers, self.stem)(**self.options)
        return call


_OURS: dict[str, Callable[..., Tensor]] = {
    "contrastive_cosine": partial(
        functional.contrastive, distance="cosine", reduction="anchor_mean", normalize="unit"
    ),
    "contrastive_l2": partial(functional.contrastive, normalize="unit"),
    "triplet": partial(functional.triplet, normalize="unit"),
    "multi_similarity": functional.multi_similarity,
    "proxy_nca": functional.proxy_nca,
    "proxy_nca_original": partial(functional.proxy_nca, variant="original"),
    "proxy_anchor": functional.proxy_anchor,
    "arcface": partial(functional.margin_softmax, kind="arcface"),
    "soft_triple": partial(functional.soft_triple, tau=0.0),  # the others have no regulariser
}
_SOP = {"pos_margin": 0.2858, "neg_margin": 0.5130}  # C2 in arXiv 2209.09060, as the others' options
LOSSES = (
    Loss("c1", "contrastive_cosine", {"neg_margin": 0.5}, dense=False),
    Loss("c2", "contrastive_l2", _SOP, dense=False),
    Loss("c2-all-active", "contrastive_l2", {"pos_margin": 0.0, "neg_margin": 2.0}, False, ("sop",)),
    Loss("triplet", "triplet", {"margin": 0.0451}, dense=False),
    Loss("triplet-all-active", "triplet", {"margin": 2.0}, False, ("sop",)),
    Loss("multi_similarity", "multi_similarity", {"alpha": 2.0, "beta": 40.0, "base": 0.5}, dense=True),
    Loss("proxy_nca", "proxy_nca", {"temperature": 1 / 9}, dense=True),
    Loss("proxy_nca-original", "proxy_nca_original", {"temperature": 1 / 9}, True, ("sop",)),
    Loss(
        "proxy_anchor", "proxy_anchor", {"alpha": 32.0, "margin": 0.1}, True, ("sop", "sop-512", "1e5"), True
    ),
    Loss("arcface", "arcface", {"scale": 64.0, "margin": 0.5}, True, ("sop", "sop-512", "1e5"), True),
    Loss(
        "soft_triple",
        "soft_triple",
        {"scale": 20.0, "gamma": 0.1, "margin": 0.01},
        True,
        ("sop", "sop-512", "1e5"),
    ),
)


@dataclass(frozen=True)
class Inputs:
    """What a loss is called with; leaves require gradients."""

    anchors: Tensor  # [M, D]
    references: Tensor | None  # [C, K, D]
    labels: Tensor  # [M] int64

    @property
    def leaves(self) -> list[Tensor]:
        """What gradients are asked for."""
        return [self.anchors] if self.references is None else [self.anchors, self.references]

    def double(self) -> Inputs:
        """The same in float64."""
        anchors, *references = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        return Inputs(anchors, references[0] if references else None, self.labels)

    @property
    def pairs(self) -> int:
        """M · N."""
        return len(self.anchors) * (
            len(self.anchors) if self.references is None else self.references[..., 0].numel()
        )


def make_inputs(shape: Shape, seed: int = 0, place: Place = CPU) -> Inputs:
    """Random, the same every time on the same kind of device."""
    device = place.device
    random = torch.Generator(device).manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return normalize(torch.randn(*size, shape.dim, generator=random, device=device), dim=-1)

    def lengths(*size: int) -> Tensor:
        return torch.rand(*size, 1, generator=random, device=device) + 0.5

    classes = shape.classes or max(BATCH_CLASSES, GROUP)
    groups = noise((classes + GROUP - 1) // GROUP).repeat_interleave(GROUP, 0)[:classes]
    centers = normalize(groups + 0.25 * noise(classes), dim=-1)
    point, around = (noise(1), COLLAPSED) if shape.collapsed else (0.0, 1.0)
    few = min(BATCH_CLASSES, shape.anchors // 2, classes)
    chosen = torch.randperm(classes, generator=random, device=device)[:few]
    labels = chosen.repeat_interleave(shape.anchors // few)
    anchors = (point + around * (centers[labels] + 0.4 * noise(len(labels)))) * lengths(len(labels))
    references = None
    if shape.classes:
        proxies = point + around * (centers[:, None] + 0.3 * noise(classes, shape.per_class))
        references = (proxies * lengths(classes, shape.per_class)).to(place.dtype).requires_grad_()
    return Inputs(anchors.to(place.dtype).requires_grad_(), references, labels)


def cases(size: Size) -> list[Case]:
    """Each loss in each of its settings."""
    return [
        case(
            loss,
            setting,
            SHAPES[size][setting],
            aims=(Aim("speed", "peer", 5.0), Aim("memory", "peer", 0.02))
            if setting == "sop" and loss.has_peer
            else (),
        )
        for loss in LOSSES
        for setting in loss.settings
    ]


def case(
    loss: Loss,
    setting: str,
    shape: Shape,
    place: Place = CPU,
    implementations: tuple[Implementation, ...] | None = None,
    aims: tuple[Aim, ...] = (),
) -> Case:
    """One loss at one shape; `implementations`: None for those of the CPU."""
    if loss.one_proxy:
        shape = replace(shape, classes=shape.classes * shape.per_class, per_class=1)
    return Case(
        family=FAMILY,
        name=loss.name,
        setting=setting,
        shape=str(shape),
        inputs=partial(make_inputs, shape, place=place),
        work=partial(_work, loss),
        implementations=_implementations(loss) if implementations is None else implementations,
        truth=partial(_truth, loss),
        undecided=partial(_undecided, loss, place.precision) if loss.margins else None,
        aims=aims,
        precision=place.precision,
        products=True,
        passes=partial(_passes, loss.ours),
        kernel_work=partial(_kernel_work, loss.stem == "proxy_anchor"),
    )


def _implementations(loss: Loss) -> tuple[Implementation, ...]:
    versions = [
        Implementation("ccp_fast", "ours", partial(forward_backward, loss.ours)),
        Implementation("eager", "eager", partial(forward_backward, partial(pairs.loss_of, loss.eager))),
        Implementation(
            "eager by hand", "eager", partial(forward_backward, partial(by_hand.loss_of, loss.by_hand))
        ),
        Implementation("torch.compile", "compiled", compiled(loss.eager)),
    ]
    if loss.has_peer:
        versions.append(
            Implementation(
                "pytorch-metric-learning", "peer", lambda inputs: forward_backward(loss.peer(), inputs)
            )
        )
    return tuple(versions)


def forward_backward(call: Call, inputs: Inputs) -> Step:
    """A call and its gradients."""

    def step() -> Outputs:
        value = call(inputs.anchors, inputs.references, inputs.labels)
        return value.detach(), *torch.autograd.grad(value, inputs.leaves)

    return step


def compiled(pair_loss: pairs.PairLoss) -> Callable[[Inputs], Step]:
    """Compiled for the first inputs it is prepared for, and used again for others of their shape."""
    calls: list[Any] = []

    def prepare(inputs: Inputs) -> Step:
        if not calls:
            torch._dynamo.reset()
            calls.append(torch.compile(partial(pairs.loss_of, pair_loss), dynamic=False))
        return forward_backward(calls[0], inputs)

    return prepare


def _passes(call: Call, inputs: Inputs) -> tuple[Step, Step]:
    """Forward, and backward from a value that is already there and a gradient that is given."""
    value = call(inputs.anchors, inputs.references, inputs.labels)
    one = torch.ones_like(value)
    return (
        lambda: (call(inputs.anchors, inputs.references, inputs.labels),),
        lambda: torch.autograd.grad(value, inputs.leaves, one, retain_graph=True),
    )


def _truth(loss: Loss, inputs: Inputs) -> Outputs:
    """In parts where it can be; the terms of Proxy-Anchor are of columns, and there are no 10⁷ of them."""
    if inputs.references is None or loss.stem == "proxy_anchor":
        return forward_backward(partial(pairs.loss_of, loss.eager), inputs.double())()
    return truth.value_and_gradients(loss.eager, inputs.anchors, inputs.references, inputs.labels)


def _undecided(loss: Loss, precision: Precision, inputs: Inputs) -> Outputs:
    """What the pairs on a margin make of the value and of each vector's gradient: the largest difference.

    Rounding decides whether such a pair has a term. So much do results differ between margins a little larger and a
    little smaller.
    """
    by = _ON_A_MARGIN[precision]
    lower, upper = (
        _truth(replace(loss, options={name: loss.options[name] + shift for name in loss.margins}), inputs)
        for shift in (-by, by)
    )
    # In place: gradients of ten million proxies take gigabytes.
    value, *gradients = (x.sub_(y).abs_() for x, y in zip(lower, upper, strict=True))
    return value, *(gradient.amax(-1) for gradient in gradients)


def _work(loss: Loss, inputs: Inputs) -> Work:
    if loss.dense:
        return work(inputs, inputs.pairs)
    active = active_pairs(loss.eager, inputs)
    return work(inputs, active)._replace(note=f"{active / inputs.pairs:.2%} of the pairs active")


def _kernel_work(
    proxies_are_rows: bool, inputs: Inputs, work: Work, launches: Sequence[Launch], multiprocessors: int
) -> list[KernelWork | None]:
    return kernel_work.of_loss(inputs.leaves, work, launches, multiprocessors, proxies_are_rows)


def work(inputs: Inputs, active: int) -> Work:
    """One product for the similarities, two for the gradients of the active pairs; exp and sqrt are left out.

    2·M·N·D + 4·active·D FLOPs; both sides are read once and their gradients written once.
    """
    dim = inputs.anchors.shape[1]
    flops = 2.0 * inputs.pairs * dim + 4.0 * active * dim
    return Work(flops, 2.0 * sum(leaf.nbytes for leaf in inputs.leaves))


def active_pairs(pair_loss: pairs.PairLoss, inputs: Inputs) -> int:
    """Pairs whose similarity has a gradient, in float32."""
    labels = inputs.labels
    with torch.no_grad():
        a = normalize(inputs.anchors.float(), dim=1)
    if inputs.references is None:
        with torch.no_grad():
            s = (a @ a.T).fill_diagonal_(pairs.NEVER)
        return _with_gradient(pair_loss, s, pairs.positives_of(labels, None))
    with torch.no_grad():
        r = normalize(inputs.references.flatten(0, 1).float(), dim=1)
    rows = max(1, AT_ONCE // max(1, len(r)))
    return sum(
        _with_gradient(pair_loss, part @ r.T, pairs.positives_of(own, inputs.references.shape[1]))
        for part, own in zip(a.split(rows), labels.split(rows), strict=True)
    )


def _with_gradient(pair_loss: pairs.PairLoss, s: Tensor, positives: Tensor) -> int:
    (gradient,) = torch.autograd.grad(pairs.value_of(pair_loss(s.requires_grad_(), positives)), s)
    return int(gradient.count_nonzero())
