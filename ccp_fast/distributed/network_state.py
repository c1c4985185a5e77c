"""A network under DDP or FSDP2 and its optimizer, as tensors that `checkpoint.save` and `checkpoint.load` take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from ccp_fast.alternating.weights import to_shards

_FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def network_state(network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Weights, buffers and the optimizer's tensors, by the same names whatever wraps the network.

    The optimizer holds parameters of the network alone. One that has not stepped yet gets its state, of zeros.
    """
    to_shards(network)
    whole = _optimizer_state(network, optimizer)
    tensors = {name: value for name, value in whole.items() if isinstance(value, Tensor)}
    return {"network": get_model_state_dict(network), "optimizer": tensors}


def load_network_state(network: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Go on where `network_state` was taken; rates and other settings of the optimizer stay as they are."""
    to_shards(network)
    set_model_state_dict(network, state["network"])
    whole = _optimizer_state(network, optimizer)
    set_optimizer_state_dict(network, optimizer, {**whole, **state["optimizer"]}, options=_FLAT)


def _optimizer_state(network: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    begun = bool(optimizer.state)
    whole: dict[str, Any] = dict(get_optimizer_state_dict(network, optimizer, options=_FLAT))
    if not begun:  # torch has made it by a step at rate 0, and counted that
        of_parameters = [state["step"] for state in optimizer.state.values() if "step" in state]
        for count in (*of_parameters, *(whole[name] for name in whole if name.endswith(".step"))):
            count.zero_()
    return whole
