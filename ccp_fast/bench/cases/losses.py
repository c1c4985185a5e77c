"""The fused losses, forward and backward, gradients of embeddings and proxies.

The inputs look like a trained embedding: proxies of a class lie together, classes come in groups of look-alikes, so
that hinge losses have some active negatives and not all. Norms differ from one, so that normalising is work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ccp_fast import functional
from ccp_fast.bench.baselines import by_hand, pairs, peers
from ccp_fast.bench.case import Aim, Case, Implementation, Outputs, Size, Step, Work

FAMILY = "losses"
BATCH_CLASSES = 32
GROUP = 16  # classes that look alike

Call = Callable[[Tensor, Tensor | None, Tensor], Tensor]


@dataclass(frozen=True)
class Shape:
    """M anchors against C classes of K proxies, or against each other where classes is 0."""

    anchors: int
    dim: int
    classes: int
    per_class: int

    def __str__(self) -> str:
        references = f"{self.classes:,} x {self.per_class}" if self.classes else f"{self.anchors}"
        return f"{self.anchors} vs {references}, {self.dim}-D"


_FULL = {
    "sop": Shape(128, 128, 11_318, 4),
    "sop-512": Shape(128, 512, 11_318, 4),
    "1e5": Shape(128, 128, 25_000, 4),
    "batch": Shape(128, 128, 0, 0),
}
_QUICK = {
    "sop": Shape(128, 128, 707, 4),
    "sop-512": Shape(128, 512, 707, 4),
    "1e5": Shape(128, 128, 1_562, 4),
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
    """One loss in all its versions."""

    name: str
    ours: Call
    eager: pairs.PairLoss
    by_hand: by_hand.Loss
    peer: Callable[[], Call] | None
    dense: bool  # every pair has a gradient
    settings: tuple[str, ...] = ("sop", "sop-512", "1e5", "batch")
    one_proxy: bool = False  # K = 1 and as many classes as there would be proxies


def _losses() -> list[Loss]:
    c2 = {"pos_margin": 0.2858, "neg_margin": 0.5130}  # SOP's settings in arXiv 2209.09060
    widest = {"pos_margin": 0.0, "neg_margin": 2.0}
    ms = {"alpha": 2.0, "beta": 40.0, "base": 0.5}
    nca, anchor = {"temperature": 1 / 9}, {"alpha": 32.0, "margin": 0.1}
    c1 = partial(functional.contrastive, distance="cosine", reduction="anchor_mean", normalize="unit")
    l2 = partial(functional.contrastive, normalize="unit")
    triplet = partial(functional.triplet, normalize="unit")
    sop = ("sop",)
    return [
        Loss("c1", partial(c1, neg_margin=0.5), partial(pairs.contrastive_cosine, neg_margin=0.5),
             by_hand.contrastive_cosine(0.5), partial(peers.contrastive_cosine, 0.5), dense=False),
        Loss("c2", partial(l2, **c2), partial(pairs.contrastive_l2, **c2), by_hand.contrastive_l2(**c2),
             partial(peers.contrastive_l2, **c2), dense=False),
        Loss("c2-all-active", partial(l2, **widest), partial(pairs.contrastive_l2, **widest),
             by_hand.contrastive_l2(**widest), partial(peers.contrastive_l2, **widest), dense=False, settings=sop),
        Loss("triplet", partial(triplet, margin=0.0451), partial(pairs.triplet, margin=0.0451),
             by_hand.triplet(0.0451), partial(peers.triplet, 0.0451), dense=False),
        Loss("triplet-all-active", partial(triplet, margin=2.0), partial(pairs.triplet, margin=2.0),
             by_hand.triplet(2.0), partial(peers.triplet, 2.0), dense=False, settings=sop),
        Loss("multi_similarity", partial(functional.multi_similarity, **ms), partial(pairs.multi_similarity, **ms),
             by_hand.multi_similarity(**ms), partial(peers.multi_similarity, **ms), dense=True),
        Loss("proxy_nca", partial(functional.proxy_nca, **nca), partial(pairs.proxy_nca, **nca),
             by_hand.proxy_nca(**nca), partial(peers.proxy_nca, **nca), dense=True),
        Loss("proxy_nca-original", partial(functional.proxy_nca, variant="original", **nca),
             partial(pairs.proxy_nca_original, **nca), by_hand.proxy_nca(**nca, original=True), None, dense=True,
             settings=sop),
        Loss("proxy_anchor", partial(functional.proxy_anchor, **anchor), partial(pairs.proxy_anchor, **anchor),
             by_hand.proxy_anchor(**anchor), partial(peers.proxy_anchor, **anchor), dense=True,
             settings=("sop", "sop-512", "1e5"), one_proxy=True),
    ]  # fmt: skip


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

    @cached_property
    def pairs(self) -> int:
        """M · N."""
        return len(self.anchors) * (len(self.anchors) if self.references is None else self.references[..., 0].numel())


def make_inputs(shape: Shape, seed: int = 0) -> Inputs:
    """Random, the same every time."""
    random = torch.Generator().manual_seed(seed)

    def noise(*size: int) -> Tensor:
        return normalize(torch.randn(*size, shape.dim, generator=random), dim=-1)

    def lengths(*size: int) -> Tensor:
        return torch.rand(*size, 1, generator=random) + 0.5

    classes = shape.classes or max(BATCH_CLASSES, GROUP)
    groups = noise((classes + GROUP - 1) // GROUP).repeat_interleave(GROUP, 0)[:classes]
    centers = normalize(groups + 0.25 * noise(classes), dim=-1)
    few = min(BATCH_CLASSES, shape.anchors // 2, classes)
    chosen = torch.randperm(classes, generator=random)[:few]
    labels = chosen.repeat_interleave(shape.anchors // few)
    anchors = (centers[labels] + 0.4 * noise(len(labels))) * lengths(len(labels))
    references = None
    if shape.classes:
        proxies = centers[:, None] + 0.3 * noise(classes, shape.per_class)
        references = (proxies * lengths(classes, shape.per_class)).requires_grad_()
    return Inputs(anchors.requires_grad_(), references, labels)


def cases(size: Size) -> list[Case]:
    """Each loss in each of its settings."""
    return [_case(loss, setting, SHAPES[size][setting]) for loss in _losses() for setting in loss.settings]


def _case(loss: Loss, setting: str, shape: Shape) -> Case:
    if loss.one_proxy:
        shape = replace(shape, classes=shape.classes * shape.per_class, per_class=1)
    return Case(
        family=FAMILY,
        name=loss.name,
        setting=setting,
        shape=str(shape),
        inputs=partial(make_inputs, shape),
        work=lambda inputs: work(inputs, inputs.pairs if loss.dense else active_pairs(loss.eager, inputs)),
        implementations=_implementations(loss),
        truth=lambda inputs: _forward_backward(partial(pairs.loss_of, loss.eager), inputs.double())(),
        aims=(Aim("speed", "peer", 5.0), Aim("memory", "peer", 0.02)) if setting == "sop" and loss.peer else (),
        note=lambda inputs: "" if loss.dense else _share_active(loss.eager, inputs),
    )


def _implementations(loss: Loss) -> tuple[Implementation, ...]:
    versions = [
        Implementation("ccp_fast", "ours", partial(_forward_backward, loss.ours)),
        Implementation("eager", "eager", partial(_forward_backward, partial(pairs.loss_of, loss.eager))),
        Implementation("eager by hand", "eager", partial(_forward_backward, partial(by_hand.loss_of, loss.by_hand))),
        Implementation("torch.compile", "compiled", partial(_compiled, loss.eager)),
    ]
    if loss.peer is not None:
        peer = loss.peer
        versions.append(Implementation("pytorch-metric-learning", "peer", lambda inputs: _forward_backward(peer(), inputs)))
    return tuple(versions)


def _forward_backward(call: Call, inputs: Inputs) -> Step:
    def step() -> Outputs:
        value = call(inputs.anchors, inputs.references, inputs.labels)
        return value.detach(), *torch.autograd.grad(value, inputs.leaves)

    return step


def _compiled(pair_loss: pairs.PairLoss, inputs: Inputs) -> Step:
    torch._dynamo.reset()
    call: Any = torch.compile(partial(pairs.loss_of, pair_loss), dynamic=False)
    return _forward_backward(call, inputs)


def work(inputs: Inputs, active: int) -> Work:
    """One product for the similarities, two for the gradients of the active pairs; exp and sqrt are left out.

    2·M·N·D + 4·active·D FLOPs; both sides are read once and their gradients written once.
    """
    dim = inputs.anchors.shape[1]
    flops = 2.0 * inputs.pairs * dim + 4.0 * active * dim
    return Work(flops, 2.0 * sum(leaf.nbytes for leaf in inputs.leaves))


def active_pairs(pair_loss: pairs.PairLoss, inputs: Inputs) -> int:
    """Pairs whose similarity has a gradient."""
    with torch.no_grad():
        a = normalize(inputs.anchors, dim=1)
        r = a if inputs.references is None else normalize(inputs.references.flatten(0, 1), dim=1)
        s = a @ r.T
        if inputs.references is None:
            s.fill_diagonal_(pairs.NEVER)
    s.requires_grad_()
    per_class = None if inputs.references is None else inputs.references.shape[1]
    (gradient,) = torch.autograd.grad(pair_loss(s, pairs.positives_of(inputs.labels, per_class)), s)
    return int(gradient.count_nonzero())


def _share_active(pair_loss: pairs.PairLoss, inputs: Inputs) -> str:
    return f"{active_pairs(pair_loss, inputs) / inputs.pairs:.2%} of the pairs active"
