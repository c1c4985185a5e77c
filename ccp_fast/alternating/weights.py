"""Copies of a network and its proxies, to go back to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Weights(NamedTuple):
    """Never written to: a later best is another copy."""

    network: Mapping[str, Tensor]  # parameters and buffers by name
    proxies: Tensor  # [C, K, D]


def to_shards(network: nn.Module) -> None:
    """Weights that FSDP2 has left whole, as it does behind a forward pass without a backward, become shards again."""
    for module in network.modules():
        reshard: Any = getattr(module, "reshard", None)  # of an FSDPModule, whose import takes a while
        if callable(reshard) and hasattr(module, "unshard"):
            reshard()


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the live ones; of a network under FSDP2 its shards."""
    to_shards(network)
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def live_weights(network: nn.Module, proxies: Tensor) -> Weights:
    """The live tensors themselves: theirs until the next step."""
    return Weights(tensors_of(network), proxies.detach())


@torch.no_grad()
def copy_weights(network: nn.Module, proxies: Tensor) -> Weights:
    """A copy of the live weights."""
    return Weights({name: tensor.clone() for name, tensor in tensors_of(network).items()}, proxies.clone())


@torch.no_grad()
def restore_weights(weights: Weights, network: nn.Module, proxies: Tensor) -> None:
    """Write a copy back into the live tensors."""
    for name, tensor in tensors_of(network).items():
        tensor.copy_(weights.network[name])
    proxies.copy_(weights.proxies)


def weights_from_state(name: str, state: Mapping[str, Any], network: nn.Module, proxies: Tensor) -> Weights:
    """A copy from {"network": {name: tensor}, "proxies": tensor}; ValueError if it is of another model."""
    live = {f"network.{key}": tensor for key, tensor in tensors_of(network).items()} | {"proxies": proxies}
    found = {f"network.{key}": tensor for key, tensor in state["network"].items()}
    found["proxies"] = state["proxies"]
    if live.keys() != found.keys():
        missing, unknown = sorted(live.keys() - found.keys()), sorted(found.keys() - live.keys())
        raise ValueError(f"{name}: expected the tensors of this model, got {unknown} and not {missing}")
    for key, tensor in live.items():
        if found[key].shape != tensor.shape:
            expected, got = list(tensor.shape), list(found[key].shape)
            raise ValueError(f"{name}.{key}: expected shape {expected}, got {got}")
    copies = {
        key: found[f"network.{key}"].to(tensor, copy=True) for key, tensor in tensors_of(network).items()
    }
    return Weights(copies, found["proxies"].to(proxies, copy=True))
