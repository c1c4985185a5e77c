"""tf32 is allowed where torch allows it for its own matrix products, by whichever of its settings that is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ccp_fast import functional as F
from ccp_fast.distributed import ShardedProxies


def set_global(value: str) -> None:
    torch.backends.fp32_precision = value


def set_matmul(value: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = value


def set_allow(value: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = value


def set_older(value: str) -> None:
    torch.set_float32_matmul_precision(value)


WAYS = {  # by name: settings, one after the other, and whether they allow it
    "nothing": ((), False),
    "highest": ((lambda: set_older("highest"),), False),
    "high": ((lambda: set_older("high"),), True),
    "medium": ((lambda: set_older("medium"),), True),
    "allow": ((lambda: set_allow(True),), True),
    "allow, not": ((lambda: set_allow(True), lambda: set_allow(False)), False),
    "matmul tf32": ((lambda: set_matmul("tf32"),), True),
    "matmul ieee": ((lambda: set_matmul("ieee"),), False),
    "all tf32": ((lambda: set_global("tf32"),), True),
    "all ieee": ((lambda: set_global("ieee"),), False),
    "all tf32, matmul ieee": ((lambda: set_global("tf32"), lambda: set_matmul("ieee")), False),
    "all ieee, matmul tf32": ((lambda: set_global("ieee"), lambda: set_matmul("tf32")), True),
    "high, matmul ieee": ((lambda: set_older("high"), lambda: set_matmul("ieee")), False),
    "matmul tf32, highest": ((lambda: set_matmul("tf32"), lambda: set_older("highest")), False),
    "all tf32, not allowed": ((lambda: set_global("tf32"), lambda: set_allow(False)), False),
}


@pytest.fixture(autouse=True)
def _as_torch_starts() -> Iterator[None]:
    yield
    set_older("highest")
    for setting in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul, torch.backends):
        setting.fp32_precision = "none"


class Allowed(TorchDispatchMode):
    """What the operators of the package are told."""

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: dict[str, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = [argument.name for argument in func._schema.arguments]
        if func.namespace == "ccp_fast" and "allow_tf32" in arguments:
            self.by_operator[func._opname] = args[arguments.index("allow_tf32")]
        return func(*args, **(kwargs or {}))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 4, generator=generator).requires_grad_(), torch.arange(8) % 3


def use_everything() -> None:
    x, labels = batch()
    F.contrastive(x, None, labels).backward()
    F.lifted_structure(x, None, labels)
    F.nearest_references(x, k=2)
    F.triplet(x, ShardedProxies(3, 2, 4), labels).backward()


@pytest.mark.parametrize("way", WAYS)
def test_operators_go_by_every_setting(way: str) -> None:
    settings, allowed = WAYS[way]
    for setting in settings:
        setting()
    with Allowed() as told:
        use_everything()
    assert set(told.by_operator) == {
        "nearest_references",
        "similarity_loss",
        "similarity_loss_backward",
        "similarity_shard_backward",
        "similarity_shard_counts",
        "similarity_shard_states",
    }
    assert set(told.by_operator.values()) == {allowed}


@pytest.mark.parametrize("way", ["matmul tf32", "all tf32", "high, matmul ieee"])
def test_operators_run_on_fake_tensors(way: str) -> None:
    """Where torch's older settings cannot be read."""
    for setting in WAYS[way][0]:
        setting()
    with FakeTensorMode():
        x, labels = torch.empty(8, 4, device="cuda"), torch.empty(8, dtype=torch.int64, device="cuda")
        assert F.multi_similarity(x, None, labels).shape == ()
        assert F.nearest_references(x, k=2).indices.shape == (8, 2)


@pytest.mark.parametrize("first", [set_matmul, set_global])
def test_compiled_code_follows_a_change(first: Callable[[str], None]) -> None:
    """Of `matmul.fp32_precision`: compiling sets it to what the setting for all operations says."""
    x, labels = batch()
    told: list[bool] = []

    def note(graph: torch.fx.GraphModule, _: Any) -> Any:
        (call,) = [node for node in graph.graph.nodes if "similarity_loss" in str(node.target)]
        told.append(call.args[-1])
        return graph

    compiled = torch.compile(lambda x: F.contrastive(x, None, labels), fullgraph=True, backend=note)
    expected = F.contrastive(x, None, labels)
    for change in (lambda: first("tf32"), lambda: set_matmul("ieee"), lambda: set_matmul("tf32")):
        change()
        torch.testing.assert_close(compiled(x), expected)
    assert told == [True, False]
