"""The cases of a GPU, the most telling first: a run that is short of time leaves out the last.

The families are those of the CPU, at larger shapes and in more precisions. `proxy_nca-k1` is Proxy-NCA++ with one
proxy a class, which is a softmax cross-entropy: there the kernels of language models compete
(`baselines.cross_entropy`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ccp_fast.bench.baselines import by_hand, cross_entropy, pairs
from ccp_fast.bench.case import Aim, Case, Implementation, Outputs, Place, Precision, Size, Step
from ccp_fast.bench.cases import evaluation, hopper, k_center, losses, neighbors, projection
from ccp_fast.bench.cases.losses import Inputs, Loss, Shape

TEMPERATURE = 1 / 9
ONE_PROXY = Loss("proxy_nca-k1", "proxy_nca", {"temperature": TEMPERATURE}, dense=True, one_proxy=True)

_MORE: dict[Size, dict[str, Shape]] = {
    "full": {
        "1e6": Shape(128, 128, 250_000, 4),
        "1e7": Shape(128, 128, 2_500_000, 4),
        "b32": Shape(32, 128, 11_318, 4),
        "b512": Shape(512, 128, 11_318, 4),
        "b4096": Shape(4096, 128, 11_318, 4),
        "collapsed": Shape(128, 128, 11_318, 4, collapsed=True),
    },
    "quick": {
        "1e6": Shape(128, 128, 2_048, 4),
        "1e7": Shape(128, 128, 4_096, 4),
        "b32": Shape(32, 128, 256, 4),
        "b512": Shape(512, 128, 256, 4),
        "b4096": Shape(1024, 128, 256, 4),
        "collapsed": Shape(128, 128, 256, 4, collapsed=True),
    },
    "toy": {
        "1e6": Shape(64, 16, 80, 4),
        "1e7": Shape(64, 16, 90, 4),
        "b32": Shape(32, 16, 40, 4),
        "b512": Shape(96, 16, 40, 4),
        "b4096": Shape(128, 16, 40, 4),
        "collapsed": Shape(64, 16, 40, 4, collapsed=True),
    },
}
SHAPES: dict[Size, dict[str, Shape]] = {size: {**losses.SHAPES[size], **more} for size, more in _MORE.items()}

# One pool of embeddings for each class of SOP; then a single large set.
K_CENTER: dict[Size, dict[str, k_center.Shape]] = {
    "full": {
        "sop": k_center.SHAPES["full"],
        "sop-unseeded": k_center.Shape(11_318, 7, 128, 1, 3),
        "1e6": k_center.Shape(1, 1_000_000, 128, 1, 63),
    },
    "quick": {
        "sop": k_center.SHAPES["quick"],
        "sop-unseeded": k_center.Shape(1_415, 7, 128, 1, 3),
        "1e6": k_center.Shape(1, 20_000, 128, 1, 15),
    },
    "toy": {
        "sop": k_center.SHAPES["toy"],
        "sop-unseeded": k_center.Shape(50, 7, 16, 1, 3),
        "1e6": k_center.Shape(1, 300, 16, 1, 5),
    },
}

# The proxies of a batch, up to those that fill no cache; then SOP's test set, and the first once more near one point,
# where distances are computed from differences, a pair at a time.
NEIGHBORS: dict[Size, dict[str, neighbors.Shape]] = {
    "full": {
        "sop": neighbors.SHAPES["full"]["sop"],
        "collapsed": neighbors.Shape(128, 45_272, 128, 1, collapsed=True),
        "1e6": neighbors.Shape(128, 1_000_000, 128, 1),
        "test set": neighbors.Shape(60_502, 60_502, 128, 10),
    },
    "quick": {
        "sop": neighbors.SHAPES["quick"]["sop"],
        "collapsed": neighbors.Shape(128, 4_096, 128, 1, collapsed=True),
        "1e6": neighbors.Shape(128, 8_192, 128, 1),
        "test set": neighbors.Shape(3_000, 3_000, 128, 10),
    },
    "toy": {
        "sop": neighbors.SHAPES["toy"]["sop"],
        "collapsed": neighbors.Shape(64, 160, 16, 1, collapsed=True),
        "1e6": neighbors.Shape(64, 320, 16, 1),
        "test set": neighbors.Shape(70, 150, 16, 10),
    },
}

_FASTER = tuple(Aim("speed", role, 1.0) for role in ("eager", "compiled", "peer"))
_AIMS: dict[str, tuple[Aim, ...]] = {
    "sop": (Aim("launches", "ours", 2.0), *_FASTER),
    "1e6": (Aim("floor", "ours", 0.6), *_FASTER),
    "1e7": (Aim("floor", "ours", 0.6), *_FASTER),
}
_BOTH: tuple[Precision, ...] = ("float32", "bfloat16")
_EVERY: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")


def gpu_cases(size: Size, device: str = "cuda") -> list[Case]:
    """Every case, its inputs not yet made."""
    named = {loss.name: loss for loss in losses.LOSSES} | {ONE_PROXY.name: ONE_PROXY}
    once = {name: loss for name, loss in named.items() if "-" not in name}  # every kind of loss

    def of(names: Sequence[str], settings: Sequence[str], precisions: Sequence[Precision]) -> list[Case]:
        return [
            _loss(named[name], setting, SHAPES[size][setting], Place(device, precision))
            for setting in settings
            for name in names
            if setting != "batch" or (setting in named[name].settings and not named[name].one_proxy)
            for precision in precisions
        ]

    k1 = ONE_PROXY.name
    return [
        *of([k1], ["1e6"], _EVERY),
        *of([*once, k1], ["sop"], ["float32"]),
        *_k_center(size, device),
        *_projection(size, device),
        *of([name for name in once if name != "proxy_nca"], ["1e6"], _BOTH),
        *of([k1, "c2"], ["1e5", "1e7"], _BOTH),
        *of([k1, "c2"], ["b32", "b512", "b4096"], _BOTH),
        *of([*once, k1], ["sop"], ["bfloat16"]),
        *of([k1, "c2"], ["sop"], ["tf32"]),
        *of(["c2"], ["collapsed"], _BOTH),
        *of([*once], ["sop-512", "batch"], _BOTH),
        *of([name for name in once if name != "c2"], ["1e5"], ["float32"]),
        *of(["c2-all-active", "triplet-all-active", "proxy_nca-original"], ["sop"], ["float32"]),
        *_neighbors(size, device),
        evaluation.case(size, Place(device)),
    ]


def _loss(loss: Loss, setting: str, shape: Shape, place: Place) -> Case:
    versions = _rivals(loss)
    if place.precision == "bfloat16" and hopper.is_here(place.device):
        versions = (*versions, hopper.implementation(versions[0].prepare))
    return losses.case(loss, setting, shape, place, versions, _AIMS.get(setting, ()))


def _rivals(loss: Loss) -> tuple[Implementation, ...]:
    forward_backward = losses.forward_backward
    versions = [
        Implementation("ccp_fast", "ours", partial(forward_backward, loss.ours)),
        Implementation("eager", "eager", partial(forward_backward, partial(pairs.loss_of, loss.eager))),
        Implementation("eager by hand", "eager", partial(_by_hand, loss.by_hand, False)),
    ]
    if not loss.dense:
        versions.append(
            Implementation("eager by hand, gathered", "eager", partial(_by_hand, loss.by_hand, True))
        )
    versions.append(Implementation("torch.compile", "compiled", losses.compiled(loss.eager)))
    if loss.has_peer:
        versions.append(
            Implementation(
                "pytorch-metric-learning", "peer", lambda inputs: forward_backward(loss.peer(), inputs)
            )
        )
    if loss.name == ONE_PROXY.name:
        versions += _cross_entropies()
    return tuple(versions)


def _by_hand(loss: by_hand.Loss, gather: bool, inputs: Inputs) -> Step:
    """Without autograd around it: to see that a gradient is one, it would wait for the GPU."""

    @torch.no_grad()
    def step() -> Outputs:
        value, *gradients = by_hand.value_and_gradients(
            loss, inputs.anchors, inputs.references, inputs.labels, gather
        )
        return value, *(gradient for gradient in gradients if gradient is not None)

    return step


def _cross_entropies() -> list[Implementation]:
    found = [Implementation("eager cross_entropy", "eager", partial(_normalised, cross_entropy.eager))]
    for name, make in cross_entropy.HEADS.items():
        found.append(Implementation(name, "peer", partial(_normalised, make)))
        found.append(Implementation(f"{name}, alone", "part", partial(_alone, make)))
    return found


def _normalised(make: Callable[[], cross_entropy.Head], inputs: Inputs) -> Step:
    return losses.forward_backward(partial(cross_entropy.loss_of, make(), TEMPERATURE), inputs)


def _alone(make: Callable[[], cross_entropy.Head], inputs: Inputs) -> Step:
    """Hidden states and vocabulary made beforehand, gradients of those; no results, as nothing to compare them with."""
    head = make()
    assert inputs.references is not None
    with torch.no_grad():
        hidden = cross_entropy.hidden_states(inputs.anchors, TEMPERATURE)
        weight = cross_entropy.vocabulary(inputs.references)
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight)]

    def step() -> Sequence[Tensor]:
        torch.autograd.grad(head(leaves[0], leaves[1], inputs.labels), leaves)
        return ()

    return step


def _k_center(size: Size, device: str) -> list[Case]:
    place, shapes = Place(device), K_CENTER[size]
    return [
        k_center.case("sop", shapes["sop"], place, aims=(Aim("time", "ours", 0.1), *_FASTER[:1])),
        k_center.case("sop-unseeded", shapes["sop-unseeded"], place, peers=True, aims=_FASTER),
        k_center.case("1e6", shapes["1e6"], place, peers=True, aims=_FASTER),
    ]


def _projection(size: Size, device: str) -> list[Case]:
    copies = (Implementation("copy by Tensor.copy_", "copy", projection.copy_on_device),)
    aims = (Aim("rate", "copy", 0.85), *_FASTER[:1])
    return [
        replace(
            projection.case(size, copies, Place(device, precision)),
            aims=aims if precision == "float32" else (),
        )
        for precision in _BOTH
    ]


def _neighbors(size: Size, device: str) -> list[Case]:
    shapes = NEIGHBORS[size]
    return [neighbors.case(setting, shapes[setting], Place(device), _FASTER[:1]) for setting in shapes]
