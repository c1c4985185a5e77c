"""Checkpoints of sharded proxies and what trains beside them, that load on any number of ranks.

torch.distributed.checkpoint puts the parts of each rank where the ranks that load want them. Its files are safetensors
with the place of each part in their headers: nothing in them is code. They need the package safetensors (extra
[train]).
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    create_default_local_load_plan,
)
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem, TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict
from torch.optim import Optimizer

from ccp_fast.distributed.communication import clear_errors
from ccp_fast.distributed.proxies import ShardedProxies

_PROXIES, _STATE, _NUMBERS = "ccp_fast.proxies", "ccp_fast.optimizer.", "ccp_fast.numbers"
_OTHERS = "others."


class CheckpointError(RuntimeError):
    """A folder is no whole checkpoint, or one of something else."""


class _Rows:
    """A rank's rows of a tensor, as torch.distributed.checkpoint asks for them. A DTensor cannot be cut at any row."""

    def __init__(self, local: Tensor, begin: int, rows: int) -> None:
        self.local = local
        self.size = torch.Size([rows, *local.shape[1:]])
        self.offsets = torch.Size([begin, *(0 for _ in local.shape[1:])])

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        if not len(self.local):
            return []
        properties = TensorProperties.create_from_tensor(self.local)
        data = TensorWriteData(chunk=self._chunk(), properties=properties, size=self.size)
        return [WriteItem(index=MetadataIndex(fqn, self.offsets), type=WriteItemType.SHARD, tensor_data=data)]

    def chunks(self) -> list[ChunkStorageMetadata]:
        """One, or none for no rows."""
        return [self._chunk()] if len(self.local) else []

    def _chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(offsets=self.offsets, sizes=self.local.shape)


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> Any:
        found = self.state_dict[index.fqn]
        return found.local if isinstance(found, _Rows) else super().lookup_object(index)


class _LoadPlanner(DefaultLoadPlanner):
    """Of a state dict that is flat already; what it cannot name, torch's own would replace by None."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__()
        self._state = state

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict = self.original_state_dict = self._state
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        items: list[ReadItem] = []
        assert self.metadata is not None
        for name, value in self._state.items():
            meta = self.metadata.state_dict_metadata[name]
            if isinstance(value, _Rows) and isinstance(meta, TensorStorageMetadata):
                items += create_read_items_for_chunk_list(name, meta, value.chunks())
        rest = {name: value for name, value in self._state.items() if not isinstance(value, _Rows)}
        return LoadPlan(items + create_default_local_load_plan(rest, self.metadata).items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        found = self.state_dict[index.fqn]
        return found.local if isinstance(found, _Rows) else super().lookup_tensor(index)


def save(
    folder: str | os.PathLike[str],
    proxies: ShardedProxies,
    optimizer: Optimizer | None = None,
    others: Mapping[str, Any] | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> None:
    """All ranks write their parts of a checkpoint together; the folder appears once it is whole.

    Args:
        folder: new, on storage that all ranks see. An older checkpoint there is replaced.
        proxies: of all ranks.
        optimizer: that holds them; its state of the proxies is saved, not that of other parameters.
        others: nested dicts of tensors, the same on all ranks, and of DTensors: what
            `torch.distributed.checkpoint.state_dict.get_state_dict` gives of a network under DDP or FSDP2.
        numbers: what goes into JSON, the same on all ranks: steps done, the state of `AlternatingProjections` apart.

    Raises RankLost if another rank dies meanwhile; the folder is then as it was before.
    """
    comm, target = proxies.comm, Path(folder)
    part = target.with_name(target.name + ".part")
    if comm.rank == 0 and part.exists():
        shutil.rmtree(part)
    comm.barrier("checkpoint begins")
    state = _tensors(proxies, optimizer) | _flat(others or {}, _OTHERS)
    text = json.dumps(
        {"draws": int(proxies.draws), "steps": _steps(proxies, optimizer), "own": numbers or {}}
    )
    state[_NUMBERS] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
    with clear_errors("checkpoint"), _without_a_warning():
        save_state_dict(
            state,
            storage_writer=writer,
            planner=_SavePlanner(),
            process_group=comm.group,
            no_dist=comm.size == 1,
        )
    comm.barrier("checkpoint is whole")
    if comm.rank == 0:
        if target.exists():
            old = target.with_name(target.name + ".old")
            os.replace(target, old)
            os.replace(part, target)
            shutil.rmtree(old)
        else:
            os.replace(part, target)
    comm.barrier("checkpoint has its name")


def load(
    folder: str | os.PathLike[str],
    proxies: ShardedProxies,
    optimizer: Optimizer | None = None,
    others: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """All ranks read their parts, in place, whatever number of ranks wrote them; returns the `numbers`.

    others: like those saved; their tensors are written to. `set_state_dict` then puts them into the network.
    Raises CheckpointError, before anything is changed, for a folder without a checkpoint and one of other sizes.
    """
    comm, path = proxies.comm, Path(folder)
    reader = HuggingFaceStorageReader(str(path))
    if not path.is_dir() or not any(path.glob("*.safetensors")):
        raise CheckpointError(f"{path}: expected the folder of a checkpoint, found none")
    found = reader.read_metadata().state_dict_metadata
    names = [name.removeprefix(_STATE) for name in found if name.startswith(_STATE)] if optimizer else []
    wanted = _tensors(proxies, None) | _flat(others or {}, _OTHERS)
    for name in names:
        like = torch.zeros_like(proxies.proxies, dtype=_dtype(found[_STATE + name]))
        wanted[_STATE + name] = _rows(like, proxies)
    for name, tensor in wanted.items():
        meta = found.get(name)
        size = tensor.size if isinstance(tensor, _Rows) else tensor.shape
        if not isinstance(meta, TensorStorageMetadata) or meta.size != size:
            got = "none" if meta is None else f"shape {list(meta.size)}"  # type: ignore[union-attr]
            raise CheckpointError(f"{path}: expected {name} of shape {list(size)}, got {got}")
    text = torch.empty(found[_NUMBERS].size, dtype=torch.uint8)  # type: ignore[union-attr]
    wanted[_NUMBERS] = text
    with clear_errors("checkpoint"), _without_a_warning():
        load_state_dict(
            {name: value for name, value in wanted.items() if isinstance(value, Tensor)},
            storage_reader=reader,
            planner=_LoadPlanner(wanted),
            process_group=comm.group,
            no_dist=comm.size == 1,
        )
    numbers = json.loads(bytes(text.tolist()))
    proxies.draws.fill_(numbers["draws"])
    if optimizer is not None:
        state: dict[str, Any] = {name: wanted[_STATE + name].local for name in names}
        for name, value in numbers["steps"].items():
            state[name] = torch.tensor(value, dtype=torch.float32)
        if state:
            optimizer.state[proxies.proxies] = state
    own: dict[str, Any] = numbers["own"]
    return own


@contextmanager
def _without_a_warning() -> Iterator[None]:
    """Of torch, that one process is one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _tensors(proxies: ShardedProxies, optimizer: Optimizer | None) -> dict[str, Any]:
    """The proxies, and what the optimizer keeps of each."""
    state = optimizer.state.get(proxies.proxies, {}) if optimizer is not None else {}
    kept = {_STATE + k: _rows(v, proxies) for k, v in state.items() if _has_rows(v, proxies)}
    return {_PROXIES: _rows(proxies.proxies.detach(), proxies), **kept}


def _steps(proxies: ShardedProxies, optimizer: Optimizer | None) -> dict[str, float]:
    """What it keeps of all together: the number of steps."""
    state = optimizer.state.get(proxies.proxies, {}) if optimizer is not None else {}
    return {k: float(v) for k, v in state.items() if v is not None and not _has_rows(v, proxies)}


def _has_rows(value: Any, proxies: ShardedProxies) -> bool:
    return isinstance(value, Tensor) and value.shape == proxies.proxies.shape


def _rows(local: Tensor, proxies: ShardedProxies) -> _Rows:
    return _Rows(local, proxies.begin, proxies.num_classes)


def _dtype(meta: Any) -> torch.dtype:
    dtype: torch.dtype = meta.properties.dtype
    return dtype


def _flat(nested: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Tensors by dotted name. A TypeError names what is none."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            flat[prefix + str(key)] = value.detach()
        else:
            raise TypeError(f"{prefix}{key}: expected tensors in nested dicts, got {type(value).__name__}")
    return flat
