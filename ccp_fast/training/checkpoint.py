"""A training state in one file that holds no code: tensors in safetensors, the rest as JSON in its header.

The header also has a checksum over both, so a file that is cut or changed anywhere is recognised.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ccp_fast._system.files import write_atomically

FORMAT = "ccp-fast checkpoint 1"


class DamagedCheckpoint(Exception):
    """The file cannot be read, is cut, or its contents are not what was written."""


class Checkpoint(NamedTuple):
    """What a file holds."""

    step: int
    best_step: int | None  # of the best evaluation so far; the file of that step has its weights
    state: dict[str, Any]  # nested dicts and lists of tensors, numbers, strings, booleans and None


def write(path: Path, checkpoint: Checkpoint) -> None:
    """Write a file atomically. Raises TypeError for a state of anything else."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encode(checkpoint.state, "", tensors))
    steps = json.dumps([checkpoint.step, checkpoint.best_step])
    digest = _checksum(steps + text, tensors)
    write_atomically(path, save(tensors, {"format": FORMAT, "steps": steps, "state": text, "sha256": digest}))


def read(path: Path) -> Checkpoint:
    """What was written. Raises DamagedCheckpoint."""
    header = _header(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpoint(str(error)) from error
    if header["sha256"] != _checksum(header["steps"] + header["state"], tensors):
        raise DamagedCheckpoint("its checksum differs")
    step, best = json.loads(header["steps"])
    return Checkpoint(step, best, _decode(json.loads(header["state"]), tensors))


def best_step(path: Path) -> int | None:
    """The best step a file names, from its header alone. Raises DamagedCheckpoint."""
    try:
        best: int | None = json.loads(_header(path)["steps"])[1]
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from error
    return best


def _header(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpoint(str(error)) from error
    if header.get("format") != FORMAT or not {"steps", "state", "sha256"} <= header.keys():
        raise DamagedCheckpoint("it is not a checkpoint of this version of ccp_fast")
    return header


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for a value; tensors are put into `tensors` under their path and replaced by a reference to it."""
    if isinstance(value, Tensor):
        # A copy: no two tensors of a file share memory, whatever those of the state do.
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": path, "channels_last": _is_channels_last(value)}
    if isinstance(value, Mapping):  # as pairs: JSON would turn the integer keys of an optimizer into strings
        return {"dict": [[key, _encode(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return [_encode(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{path}: expected tensors, numbers, strings, lists and dicts, got {type(value).__name__}"
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if isinstance(value, dict):
        if "dict" in value:
            return {key: _decode(item, tensors) for key, item in value["dict"]}
        tensor = tensors[value["tensor"]]
        return tensor.contiguous(memory_format=torch.channels_last) if value["channels_last"] else tensor
    return value


def _is_channels_last(tensor: Tensor) -> bool:
    """Files hold rows in order, but fused optimizers go over memory as it lies: keep the layout."""
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return channels_last and not tensor.is_contiguous()


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
