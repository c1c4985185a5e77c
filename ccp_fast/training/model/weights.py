"""Weights from files, without running anything that is in them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ccp_fast.training.errors import UserError


class Weights(NamedTuple):
    """Tensors by name, and where they are from."""

    path: Path
    tensors: dict[str, Tensor]

    def renamed(self, name_of: Callable[[str], str | None]) -> Weights:
        """Under other names; None leaves a tensor out."""
        named = {name_of(name): tensor for name, tensor in self.tensors.items()}
        return Weights(self.path, {name: tensor for name, tensor in named.items() if name is not None})


def read_weights(path: Path) -> Weights:
    """Tensors by name, from safetensors or from `torch.save` of a state_dict, which may lie under "state_dict".

    Raises UserError for a file that is not there, cut, or holds anything but tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return Weights(path, load_file(path))
        # weights_only: the unpickler builds tensors and containers, and refuses everything else.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"model.weights: {path} is not there") from None
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"model.weights: {path} cannot be read: {reason}") from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"model.weights: {path}: expected tensors by name, got something else")
    return Weights(path, dict(content))


def load_weights(module: nn.Module, weights: Weights) -> None:
    """Into a module, all of them; UserError that names the first which is missing, unknown or of another shape."""
    wanted, (path, tensors) = module.state_dict(), weights
    # Older files do not count batches.
    missing = [n for n in wanted if n not in tensors and not n.endswith(".num_batches_tracked")]
    unknown = [name for name in tensors if name not in wanted]
    if missing or unknown:
        which = f"{missing[0]!r} is missing" if missing else f"{unknown[0]!r} is not known"
        raise UserError(f"model.weights: {path} does not fit this network: {which}")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise UserError(
                f"model.weights: {path}: {name}: expected the shape {list(wanted[name].shape)}, "
                f"got {list(tensor.shape)}"
            )
    module.load_state_dict(tensors, strict=False)
