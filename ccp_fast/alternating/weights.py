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


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, the live ones."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


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


def weights_from_state(name: str, state: Any, network: nn.Module, proxies: Tensor) -> Weights:
    """A copy from its saved form {"network": {name: tensor}, "proxies": tensor}; ValueError where it does not fit."""
    expected = {f"network.{key}": tensor for key, tensor in tensors_of(network).items()} | {"proxies": proxies}
    found = {f"network.{key}": tensor for key, tensor in state["network"].items()} | {"proxies": state["proxies"]}
    for key in expected.keys() ^ found.keys():
        had, got = ("none", "one") if key in found else ("one", "none")
        raise ValueError(f"{name}: expected {had} called {key!r}, got {got}")
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            raise ValueError(
                f"{name}.{key}: expected shape {list(tensor.shape)}, got {list(found[key].shape)}"
            )
    network_copy = {key: state["network"][key].to(tensor, copy=True) for key, tensor in tensors_of(network).items()}
    return Weights(network_copy, state["proxies"].to(proxies, copy=True))
