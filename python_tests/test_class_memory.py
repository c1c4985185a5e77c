"""`ClassMemory`: the last embeddings of each class, against a list per class, and as the pool of CCP."""

from __future__ import annotations

import io
from collections import deque
from typing import Any

import pytest
import torch
from ccp_run import CLASSES, DIM, POOL, Run, assert_same
from helpers import one_thread  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ccp_fast import ClassMemory, class_memory
from ccp_fast.ccp import EmbeddedPool


def numbered(first: int, count: int, dim: int = 2) -> Tensor:
    """Embeddings that say which one they are."""
    return torch.arange(first, first + count, dtype=torch.float32)[:, None].expand(count, dim).clone()


def classes_of(pool: EmbeddedPool) -> list[list[float]]:
    """What the pool has of each class."""
    return [part[:, 0].tolist() for part in pool.embeddings.split(pool.offsets.diff().tolist())]


@settings(deadline=None, max_examples=200)
@given(
    size=st.integers(1, 5),
    recent=st.integers(1, 40),
    batches=st.lists(st.lists(st.integers(0, 3), max_size=24), max_size=6),
)
def test_holds_the_last_of_each_class(size: int, recent: int, batches: list[list[int]]) -> None:
    """Also of a class that fills its ring several times over in one batch; the s-th stored is in slot s mod size.

    Whether a batch goes into its slots at once or together with others.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_memory, "_RECENT", recent)
        check_rings(ClassMemory(num_classes=4, size=size, dim=2), size, batches)


def check_rings(memory: ClassMemory, size: int, batches: list[list[int]]) -> None:
    expected: list[deque[float]] = [deque(maxlen=size) for _ in range(4)]
    counts, first = [0] * 4, 0
    for labels in batches:
        memory.store_(numbered(first, len(labels)), torch.tensor(labels, dtype=torch.int64))
        for i, label in enumerate(labels):
            expected[label].append(float(first + i))
            counts[label] += 1
        first += len(labels)
    assert memory.stored().tolist() == counts
    slots = []
    for ring, count in zip(expected, counts, strict=True):
        turn = (count - len(ring)) % size if len(ring) == size else 0
        slots.append([ring[(i - turn) % size] for i in range(len(ring))])
    if first:
        assert classes_of(memory.pool()) == slots
    assert memory.stored().all() == all(counts)


class WritesBackwards(TorchDispatchMode):
    """Several writes to a place happen in the other order: a GPU has none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index_put_.default:
            target, indices, values = args
            args = (target, [index.flip(0) for index in indices], values.flip(0))
        return func(*args, **(kwargs or {}))


def test_a_class_that_comes_round_in_a_batch_does_not_depend_on_the_order_of_writes() -> None:
    memory, backwards = ClassMemory(3, 2, 2), ClassMemory(3, 2, 2)
    labels = torch.tensor([0, 1, 0, 0, 2, 0, 0, 1, 1])
    memory.store_(numbered(0, 9), labels)
    backwards.store_(numbered(0, 9), labels)
    with WritesBackwards():
        found = backwards.pool()
    assert classes_of(found) == classes_of(memory.pool()) == [[6, 5], [8, 7], [4]]


def test_keeps_its_dtype_and_no_graph() -> None:
    memory = ClassMemory(3, 2, 4)
    batch = torch.randn(4, 4, dtype=torch.bfloat16, requires_grad=True)
    memory.store_(batch, torch.tensor([2, 0, 2, 2]))
    pool = memory.pool()
    assert pool.embeddings.dtype == torch.float32
    assert not pool.embeddings.requires_grad
    assert torch.equal(pool.embeddings, batch.detach().float()[[1, 3, 2]])
    assert pool.offsets.tolist() == [0, 1, 1, 3]


def test_stores_without_waiting_for_a_gpu() -> None:
    """On "meta", whose tensors hold no numbers, whatever asks for one fails: as it would wait on a GPU."""
    memory = ClassMemory(5, 3, 2).to("meta")
    for count in (8, 3000, 3000, 9000):  # copied; put into slots before; put there itself
        labels = torch.empty(count, dtype=torch.int64, device="meta")
        memory.store_(torch.empty(count, 2, device="meta"), labels)
    with pytest.raises(RuntimeError, match="meta"):
        memory.pool()


def test_a_full_memory_is_not_copied() -> None:
    memory = ClassMemory(3, 2, 2)
    memory.store_(numbered(0, 5), torch.tensor([0, 1, 2, 0, 1]))
    assert memory.pool().embeddings.data_ptr() != memory.slots.data_ptr()
    memory.store_(numbered(5, 1), torch.tensor([2]))
    assert memory.pool().embeddings.data_ptr() == memory.slots.data_ptr()
    assert classes_of(memory.pool()) == [[0, 3], [1, 4], [2, 5]]
    memory.store_(numbered(6, 1), torch.tensor([1]))
    assert classes_of(memory.pool()) == [[0, 3], [6, 4], [2, 5]]
    memory.store_(numbered(7, 1), torch.tensor([0]))
    memory.reset_()
    assert not memory.stored().any()
    assert len(memory.pool().embeddings) == 0


class Remembering(Run):
    """A run of the algorithm whose pools are remembered; class 4 is seen from step 6 on."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed, project_every=4, warm_start=5)
        self.memory = ClassMemory(CLASSES, POOL, DIM)

    def step(self) -> None:
        if self.ccp.due:
            self.ccp.project(lambda k: self.memory.pool())
        samples, labels = self.batch(self.ccp.steps)
        if self.ccp.steps < 6:
            labels = labels % 4
        embeddings = self.model(samples)
        self.memory.store_(embeddings, labels)
        self.ccp.loss(embeddings, labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def test_proxies_come_from_what_training_computed() -> None:
    run = Remembering()
    for _ in range(5):
        run.step()
    before, pool = run.weights()["proxies"], run.memory.pool()
    run.step()
    (record,) = run.ccp.history
    assert record.classes_kept == 1
    assert record.pool_milliseconds < record.milliseconds
    rows = pool.embeddings.split(pool.offsets.diff().tolist())
    # The choice of the step that is over by now: what the optimizer did to it is less than what tells points apart.
    for c in range(4):
        proxies = run.ccp.proxies[c].detach()
        assert (torch.cdist(proxies, rows[c]).amin(1) < 0.05).all()
    assert torch.allclose(run.ccp.proxies[4], before[4], atol=0.05)
    for _ in range(4):
        run.step()
    assert [r.classes_kept for r in run.ccp.history] == [1, 0]


@pytest.mark.parametrize("cut", [3, 7, 12])
def test_resumed_run_equals_an_unbroken_one(cut: int) -> None:
    unbroken = Remembering()
    for _ in range(20):
        unbroken.step()
    first = Remembering()
    for _ in range(cut):
        first.step()
    file = io.BytesIO()
    parts = ("ccp", "model", "loss", "optimizer", "memory")
    torch.save({part: getattr(first, part).state_dict() for part in parts}, file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    second = Remembering(seed=1)
    for part in parts:
        getattr(second, part).load_state_dict(states[part])
    for _ in range(cut, 20):
        second.step()
    assert_same(second.weights(), unbroken.weights())
    assert_same(dict(second.memory.state_dict()), dict(unbroken.memory.state_dict()))


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.zeros(2, dtype=torch.int64),
            r"embeddings: .* \[B, 2\], got float32 of shape",
        ),
        (torch.zeros(2, 2).long(), torch.zeros(2, dtype=torch.int64), "embeddings: expected floating point"),
        (torch.zeros(2, 2), torch.zeros(2), r"labels: expected int64 of shape \[2\], got float32"),
        (torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64), r"labels: expected int64 of shape \[2\]"),
        (torch.zeros(2, 2), torch.tensor([1, 4]), "labels: expected 0 to 3, got 4"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), "labels: expected 0 to 3, got -1"),
        (torch.zeros(2, 2, device="meta"), torch.tensor([0, 1]), "embeddings: expected on cpu, .* got meta"),
    ],
)
def test_refuses_a_batch_and_stores_nothing(embeddings: Tensor, labels: Tensor, message: str) -> None:
    memory = ClassMemory(4, 3, 2)
    with pytest.raises(ValueError, match=message):
        memory.store_(embeddings, labels)
    assert memory.stored().tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("arguments", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (1, 1.5, 1)])
def test_refuses_sizes(arguments: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"(num_classes|size|dim): expected"):
        ClassMemory(*arguments)


def test_state_is_all_that_was_stored_and_a_loaded_one_is_no_other() -> None:
    one, other = ClassMemory(3, 2, 2), ClassMemory(3, 2, 2)
    one.store_(numbered(0, 4), torch.tensor([0, 1, 0, 0]))
    other.store_(numbered(9, 1), torch.tensor([2]))  # forgotten
    module = torch.nn.ModuleDict({"memory": other})
    module.load_state_dict({f"memory.{name}": value for name, value in one.state_dict().items()})
    assert other.stored().tolist() == [3, 1, 0]
    assert classes_of(other.pool()) == classes_of(one.pool()) == [[3, 2], [1], []]
    assert {name: list(value.shape) for name, value in one.state_dict().items()} == {
        "slots": [3, 2, 2],
        "counts": [3],
    }
