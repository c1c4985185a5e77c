"""The clock of a run, on a CPU and on a pretended GPU that lags behind what it is given."""

from __future__ import annotations

import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_training
import torch
from torch import Tensor

pytest.importorskip("safetensors")

from ccp_fast.training import clock as clock_module
from ccp_fast.training.clock import PHASES, PhaseClock
from ccp_fast.training.learner import Learner

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


class Machine:
    """A program at the time `now`, and a device that will have done what it was given at the time `done`."""

    def __init__(self) -> None:
        self.now = self.done = 0.0

    def work(self, seconds: float) -> None:
        """Of the program."""
        self.now += seconds

    def launch(self, seconds: float) -> None:
        """Of the device; the program goes on."""
        self.done = max(self.now, self.done) + seconds

    def wait(self) -> None:
        """Of the program, for the device."""
        self.now = max(self.now, self.done)


class Waiting(Tensor):
    """A loss whose value is there when the device has done all."""

    machine: Machine

    def __float__(self) -> float:
        self.machine.wait()
        return super().__float__()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine()

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: object) -> None:
            assert stream == ("stream of", GPU)  # not that of torch's current device
            self.at = max(made.now, made.done)

        def query(self) -> bool:
            return made.now >= self.at

        def synchronize(self) -> None:
            made.now = max(made.now, self.at)

        def elapsed_time(self, end: Event) -> float:
            if not (self.query() and end.query()):
                raise RuntimeError("device not ready")
            return 1e3 * (end.at - self.at)

    times = SimpleNamespace(perf_counter=lambda: made.now, process_time=lambda: made.now)
    monkeypatch.setattr(clock_module, "time", times)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: ("stream of", device))
    return made


def learner(machine: Machine, device: torch.device) -> Learner:
    """Each phase takes so many seconds: of the program on a CPU, of the device on a GPU, but for the data."""
    one = Learner(tiny_training.config("method=plain"), tiny_training.images("train"))
    one.clock = one.method.clock = PhaseClock(device)
    compute = machine.launch if device.type == "cuda" else machine.work
    batch, loss = one.data.batch, one.method.loss

    def timed_batch(*arguments: Any) -> Any:
        machine.work(1.0)
        return batch(*arguments)

    def timed_loss(embeddings: Tensor, labels: Tensor) -> Tensor:
        machine.wait()  # as `labels.to(device)` does
        compute(0.5)
        value = loss(embeddings, labels)
        value.register_hook(lambda _: compute(6.0))
        value = value.as_subclass(Waiting)
        value.machine = machine
        return value

    one.data.batch, one.method.loss = timed_batch, timed_loss  # type: ignore[method-assign]
    one.model.register_forward_hook(lambda *_: compute(3.0))
    one.optimizer.register_step_post_hook(lambda *_: compute(2.0))
    Waiting.machine = machine
    return one


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_step_is_what_its_phases_take(machine: Machine, device: torch.device) -> None:
    one = learner(machine, device)
    for _ in range(4):
        one.train_step()
        assert machine.done <= machine.now  # nothing of a step is left when it ends
    expected = {"data": 4.0, "forward": 12.0, "loss": 2.0, "backward": 24.0, "optimizer": 8.0}
    assert one.clock.seconds == pytest.approx({**dict.fromkeys(PHASES, 0.0), **expected})
    assert one.clock.total == pytest.approx(machine.now) == 50.0
    assert one.clock.shares()["forward"] == pytest.approx(12 / 50)


def test_the_value_of_a_loss_is_waited_for_in_a_phase(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = learner(machine, CPU)
    monkeypatch.setattr(
        Machine, "wait", lambda self: self.work(5.0)
    )  # once for the labels, once for the value
    one.train_step()
    assert one.clock.seconds["optimizer"] == 2.0 + 5.0
    assert one.clock.total == one.clock.cpu_seconds == machine.now


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_a_phase_inside_another_is_taken_out_of_it(machine: Machine, device: torch.device) -> None:
    clock, compute = PhaseClock(device), machine.launch if device is GPU else machine.work
    compute(7.0)
    machine.wait()  # outside of all
    with clock("optimizer"):
        compute(1.0)
        with clock("projection"):
            compute(2.0)
        compute(4.0)
    with suppress(ZeroDivisionError), clock("loss"), clock("projection"):
        compute(8.0)
        raise ZeroDivisionError
    with clock("loss"):
        compute(16.0)
    nonzero = {phase: seconds for phase, seconds in clock.seconds.items() if seconds}
    assert nonzero == pytest.approx({"optimizer": 5.0, "projection": 10.0, "loss": 16.0})


def test_a_gpu_is_waited_for_by_who_asks_and_marks_do_not_pile_up(machine: Machine) -> None:
    clock = PhaseClock(GPU)
    for _ in range(3):
        with clock("forward"):
            machine.launch(3.0)
        machine.work(0.25)
    assert machine.now == 0.75
    assert clock.state_dict()["seconds"]["forward"] == pytest.approx(9.0)  # type: ignore[index]
    assert machine.now == 9.0
    for _ in range(100):
        with clock("forward"):
            machine.launch(3.0)
        machine.wait()
    assert len(clock._unread) <= 1


def test_a_clock_counts_on(machine: Machine) -> None:
    first, second = PhaseClock(GPU), PhaseClock(GPU)
    with first("data"):
        machine.work(2.0)
    with second("loss"):
        machine.work(1.0)
    second.load_state_dict(first.state_dict())
    with second("data"):
        machine.work(3.0)
    assert second.seconds["data"] == pytest.approx(5.0)
    assert second.total == pytest.approx(second.cpu_seconds) == 5.0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_real_gpu_gives_the_seconds_of_the_wall() -> None:
    device = torch.device("cuda")
    a, clock = torch.randn(4096, 4096, device=device), PhaseClock(device)
    a @ a
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(10):
        with clock("data"):
            time.sleep(0.01)
        with clock("forward"):
            for _ in range(20):
                a @ a
        with clock("loss"):
            float(a[0, 0])
    wall = time.perf_counter() - began
    assert clock.total == pytest.approx(wall, rel=0.05)
    assert clock.seconds["data"] == pytest.approx(0.1, rel=0.2)
    assert clock.seconds["loss"] < 0.1 * clock.seconds["forward"]
