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
from torch.distributed.checkpoint.api import CheckpointException
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

from ccp_fast.ccp import AlternatingProjections
from ccp_fast.distributed import ccp_state
from ccp_fast.distributed.communication import clear_errors
from ccp_fast.distributed.proxies import ShardedProxies

_PROXIES, _STATE, _NUMBERS = "ccp_fast.proxies", "ccp_fast.optimizer.", "ccp_fast.numbers"
_OTHERS, _CCP = "others.", "ccp_fast.ccp."


class CheckpointError(RuntimeError):
    """A folder is no whole checkpoint, or one of something else, or cannot be written."""


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
    ccp: AlternatingProjections | None = None,
) -> None:
    """All ranks write their parts of a checkpoint together; the folder appears once it is whole.

    Args:
        folder: new, on storage that all ranks see. An older checkpoint there is replaced.
        proxies: of all ranks.
        optimizer: that holds them; its state of the proxies is saved, not that of other parameters.
        others: nested dicts of tensors, the same on all ranks, and of DTensors: what
            `torch.distributed.checkpoint.state_dict.get_state_dict` gives of a network under DDP or FSDP2.
        numbers: what goes into JSON, the same on all ranks, such as steps done.
        ccp: whose state is saved, with its copies of network and proxies.

    Raises RankLost if another rank dies meanwhile, and CheckpointError on all ranks if one cannot write; the folder is
    then as it was before.
    """
    comm, target = proxies.comm, Path(folder)
    part = target.with_name(target.name + ".part")
    if comm.rank == 0 and part.exists():
        shutil.rmtree(part)
    comm.barrier("checkpoint begins")
    state = _tensors(proxies, optimizer) | _flat(others or {}, _OTHERS)
    content = {"draws": int(proxies.draws), "steps": _steps(proxies, optimizer), "own": numbers or {}}
    if ccp is not None:
        of_ccp = ccp_state.take_apart(ccp)
        state |= _of_ccp(of_ccp, proxies)
        content["ccp"] = of_ccp.numbers
    state[_NUMBERS] = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
    writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
    with clear_errors("checkpoint"), _one_sentence(target), _without_a_warning():
        save_state_dict(
            # Files hold numbers in order, whatever the layout in memory.
            {name: x.contiguous() if isinstance(x, Tensor) else x for name, x in state.items()},
            storage_writer=writer,
            planner=_SavePlanner(),
            process_group=comm.group,
            no_dist=comm.size == 1,
        )
    comm.barrier("checkpoint is whole")
    if comm.rank == 0:
        _replace(target, part)
    comm.barrier("checkpoint has its name")


def load(
    folder: str | os.PathLike[str],
    proxies: ShardedProxies,
    optimizer: Optimizer | None = None,
    others: Mapping[str, Any] | None = None,
    ccp: AlternatingProjections | None = None,
) -> dict[str, Any]:
    """All ranks read their parts, in place, whatever number of ranks wrote them; returns the `numbers`.

    others: like those saved; their tensors are written to. `set_state_dict` then puts them into the network.
    Raises CheckpointError, before anything is changed, for a folder without a checkpoint and one of other sizes; later
    for files that cannot be read.
    """
    path = Path(folder)
    if not path.is_dir() and _old(path).is_dir():
        path = _old(path)  # it was being replaced when it all ended
    if not path.is_dir() or not any(path.glob("*.safetensors")):
        raise CheckpointError(f"{path}: expected the folder of a checkpoint, found none")
    found = _read_headers(path)
    numbers = _read_numbers(path, found, proxies)
    wanted = _tensors(proxies, None) | _flat(others or {}, _OTHERS)
    names = [name.removeprefix(_STATE) for name in found if name.startswith(_STATE)] if optimizer else []
    for name in names:
        like = torch.zeros_like(proxies.proxies, dtype=_dtype(found[_STATE + name]))
        wanted[_STATE + name] = _rows(like, proxies)
    of_ccp = None
    if ccp is not None:
        if "ccp" not in numbers:
            raise CheckpointError(f"{path}: expected the state of AlternatingProjections, got none")
        of_ccp = ccp_state.make_room(ccp, numbers["ccp"])
        wanted |= _of_ccp(of_ccp, proxies)
    for name, tensor in wanted.items():
        meta = found.get(name)
        size = tensor.size if isinstance(tensor, _Rows) else tensor.shape
        if not isinstance(meta, TensorStorageMetadata) or meta.size != size:
            got = "none" if meta is None else f"shape {list(meta.size)}"  # type: ignore[union-attr]
            raise CheckpointError(f"{path}: expected {name} of shape {list(size)}, got {got}")
    _read(path, wanted, proxies)
    proxies.draws.fill_(numbers["draws"])
    if optimizer is not None and (names or numbers["steps"]):
        steps = _as_kept(numbers["steps"], optimizer, proxies)
        optimizer.state[proxies.proxies] = {name: wanted[_STATE + name].local for name in names} | steps
    if ccp is not None and of_ccp is not None:
        ccp_state.put_together(ccp, of_ccp)
    own: dict[str, Any] = numbers["own"]
    return own


def _old(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def _replace(target: Path, part: Path) -> None:
    """At any moment there is a whole checkpoint, here or in the folder beside."""
    if target.exists():
        if _old(target).exists():
            shutil.rmtree(_old(target))
        os.replace(target, _old(target))
    os.replace(part, target)
    if _old(target).exists():
        shutil.rmtree(_old(target))


def _read(path: Path, wanted: dict[str, Any], proxies: ShardedProxies) -> None:
    comm = proxies.comm
    with clear_errors("checkpoint"), _one_sentence(path), _without_a_warning():
        load_state_dict(
            {name: value for name, value in wanted.items() if isinstance(value, Tensor)},
            storage_reader=HuggingFaceStorageReader(str(path)),
            planner=_LoadPlanner(wanted),
            process_group=comm.group,
            no_dist=comm.size == 1,
        )


def _read_headers(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError

    try:
        return HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: expected whole files of a checkpoint, got a damaged one ({error})"
        ) from None


def _read_numbers(path: Path, found: Mapping[str, Any], proxies: ShardedProxies) -> dict[str, Any]:
    if _NUMBERS not in found:
        raise CheckpointError(f"{path}: expected a checkpoint of this package, got one of something else")
    text = torch.empty(found[_NUMBERS].size, dtype=torch.uint8)
    _read(path, {_NUMBERS: text}, proxies)
    numbers: dict[str, Any] = json.loads(bytes(text.tolist()))
    return numbers


def _of_ccp(state: ccp_state.CcpState, proxies: ShardedProxies) -> dict[str, Any]:
    rows = {f"{_CCP}{name}.proxies": _rows(x, proxies) for name, x in state.rows.items()}
    return {_CCP + name: x.detach() for name, x in state.tensors.items()} | rows


def _as_kept(steps: Mapping[str, float], optimizer: Optimizer, proxies: ShardedProxies) -> dict[str, Tensor]:
    """Numbers of steps where the optimizer wants them: beside the parameter if a kernel reads them there."""
    on_device = any(
        group.get("fused") or group.get("capturable")
        for group in optimizer.param_groups
        if any(p is proxies.proxies for p in group["params"])
    )
    device = proxies.proxies.device if on_device else torch.device("cpu")
    return {name: torch.tensor(value, dtype=torch.float32, device=device) for name, value in steps.items()}


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """CheckpointError on every rank, where torch tells every rank what went wrong on any."""
    try:
        yield
    except CheckpointException as error:
        rank, (reason, _) = next(iter(sorted(error.failures.items())))
        said = str(reason).splitlines()[0] if str(reason) else type(reason).__name__
        raise CheckpointError(f"{path}: rank {rank} could not write or read its part: {said}") from error


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
