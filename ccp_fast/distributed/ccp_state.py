"""The state of `AlternatingProjections` as what a checkpoint of many ranks holds: tensors of the network, rows of
proxies, and numbers; and back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccp_fast.alternating.weights import tensors_of
from ccp_fast.ccp import AlternatingProjections

_WEIGHTS = ("best", "solution")  # copies of network and proxies that it may keep


class CcpState(NamedTuple):
    """By name. Of a network under FSDP2 the tensors are DTensors."""

    tensors: dict[str, Tensor]
    rows: dict[str, Tensor]  # like this rank's proxies
    numbers: dict[str, Any]


def take_apart(ccp: AlternatingProjections) -> CcpState:
    """Of the algorithm as it is."""
    numbers = ccp.state_dict()
    tensors: dict[str, Tensor] = {}
    rows: dict[str, Tensor] = {}
    for name in _WEIGHTS:
        weights, numbers[name] = numbers[name], numbers[name] is not None
        if weights is not None:
            tensors |= {f"{name}.{key}": x for key, x in weights["network"].items()}
            rows[name] = weights["proxies"]
    projection = numbers["projection"]
    tensors |= {f"projection.{key}": x for key, x in projection.items() if isinstance(x, Tensor)}
    numbers["projection"] = {key: x for key, x in projection.items() if not isinstance(x, Tensor)}
    return CcpState(tensors, rows, numbers)


def make_room(ccp: AlternatingProjections, numbers: dict[str, Any]) -> CcpState:
    """Tensors to read a state with these numbers into."""
    kept = [name for name in _WEIGHTS if numbers[name]]
    tensors = {
        f"{name}.{key}": torch.empty_like(x.detach())
        for name in kept
        for key, x in tensors_of(ccp.model).items()
    }
    tensors |= {
        f"projection.{key}": torch.empty_like(x)
        for key, x in ccp.projection.state_dict().items()
        if isinstance(x, Tensor)
    }
    return CcpState(tensors, {name: torch.empty_like(ccp.proxies.detach()) for name in kept}, numbers)


def put_together(ccp: AlternatingProjections, state: CcpState) -> None:
    """Go on where `take_apart` was called."""
    whole = dict(state.numbers)
    for name in _WEIGHTS:
        whole[name] = None
        if name in state.rows:
            prefix = f"{name}."
            network = {k.removeprefix(prefix): x for k, x in state.tensors.items() if k.startswith(prefix)}
            whole[name] = {"network": network, "proxies": state.rows[name]}
    prefix = "projection."
    previous = {k.removeprefix(prefix): x for k, x in state.tensors.items() if k.startswith(prefix)}
    whole["projection"] = {**state.numbers["projection"], **previous}
    ccp.load_state_dict(whole)
