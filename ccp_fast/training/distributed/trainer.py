"""The loop over several processes: steps, evaluations, checkpoints, and at the end the numbers on unseen classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist

from ccp_fast._system import environment
from ccp_fast.data import DataFileError, Splits
from ccp_fast.distributed import clear_errors
from ccp_fast.training.best import Best
from ccp_fast.training.config import with_settings
from ccp_fast.training.display import Display, TrainingDisplay
from ccp_fast.training.distributed.checkpoints import Checkpoints
from ccp_fast.training.distributed.learner import DistributedLearner, Wrapper
from ccp_fast.training.distributed.stop import AgreedStop, agreed_stop
from ccp_fast.training.distributed.together import agreed
from ccp_fast.training.errors import CannotWrite, Diverged, UserError
from ccp_fast.training.export import NAME, export
from ccp_fast.training.fingerprint import fingerprint
from ccp_fast.training.folds import splits_of
from ccp_fast.training.interrupt import Interrupted
from ccp_fast.training.loggers import check_loggers
from ccp_fast.training.measure import check_evaluation, final_metrics
from ccp_fast.training.monitor import Monitor, monitored
from ccp_fast.training.published import settled
from ccp_fast.training.records import Records, Summary, evaluation_row, final_numbers
from ccp_fast.training.retention import is_saved
from ccp_fast.training.run_folder import RESUME_DISTRIBUTED, RunFolder
from ccp_fast.training.settings import Config
from ccp_fast.training.trainer import set_up_torch


class Spread(NamedTuple):
    """How a run is spread over processes; beside the versions in its environment.json."""

    network: Wrapper
    sample_rate: float


def train(path: Path, config: Config, spread: Spread, display: Display) -> Summary:
    """Train from the start into a new folder; returns the final numbers.

    On every rank of an initialised process group. Raises UserError, its sentence empty where another rank says it,
    RankLost, and on all ranks Interrupted after Ctrl-C.
    """
    config = settled(with_settings(config, threads=config.threads or torch.get_num_threads()))
    splits, learner = _prepare(config, spread, pretrained=True)

    def create() -> None:
        if dist.get_rank() == 0:
            made = environment.describe(config.threads or 1) | {"distributed": _described(spread)}
            RunFolder.create(path, config, made, fingerprint(splits))

    agreed(create)
    return _run(agreed(lambda: RunFolder.open(path)), splits, learner, spread, display)


def resume(path: Path, network: Wrapper | None, display: Display, wanted: Config) -> Summary:
    """Go on with a run, with any number of processes; of a finished one, its numbers.

    network: how it is wrapped from now on; None: as before. wanted: its settings, but for those of the machine.
    Raises as `train`.
    """

    def moved() -> None:
        run = RunFolder.open(path)
        run.check_trained_by(processes=True)
        if dist.get_rank() == 0:
            run.move(wanted)

    agreed(moved)
    run = agreed(lambda: RunFolder.open(path))
    finished = agreed(lambda: run.summary)
    if finished is not None:
        return finished
    made = (agreed(lambda: run.read_json("environment.json")) or {})["distributed"]
    spread = Spread(network or made["network"], made["sample_rate"])
    latest = Checkpoints(run.path, run.config.checkpoints).latest()
    splits, learner = _prepare(run.config, spread, pretrained=latest is None)
    agreed(lambda: run.check_same_data(splits))
    return _run(run, splits, learner, spread, display)


def _described(spread: Spread) -> dict[str, Any]:
    return {"processes": dist.get_world_size(), **spread._asdict()}


def _prepare(config: Config, spread: Spread, *, pretrained: bool) -> tuple[Splits, DistributedLearner]:
    """What is wrong with the settings shows here, before a folder is made."""

    def prepared() -> tuple[Splits, DistributedLearner]:
        check_loggers(config)
        check_evaluation(config)
        set_up_torch(config)
        splits = splits_of(config)
        learner = DistributedLearner(config, splits.train, spread.sample_rate, pretrained=pretrained)
        return splits, learner

    splits, learner = agreed(prepared)
    with clear_errors("start"):
        learner.connect(spread.network)
    return splits, learner


def _run(
    run: RunFolder, splits: Splits, learner: DistributedLearner, spread: Spread, display: Display
) -> Summary:
    with ExitStack() as stack:
        if dist.get_rank() == 0:
            agreed(lambda: stack.enter_context(run.lock()))
        else:
            agreed(lambda: None)
        stack.enter_context(clear_errors("training"))
        stack.enter_context(_named_rank())
        return DistributedTrainer(run, splits, learner, spread, display).run_to_the_end()


@contextmanager
def _named_rank() -> Iterator[None]:
    """What goes wrong on one rank in the middle of it all is said by that rank; the others find it lost."""
    try:
        yield
    except (CannotWrite, DataFileError) as error:
        raise UserError(f"rank {dist.get_rank()}: {error}") from None


class _Progress(NamedTuple):
    """What a checkpoint says of a run."""

    step: int = 0
    best: Best = Best()
    # The best step as of each of the newest checkpoints, this one the last.
    bests: tuple[int | None, ...] = ()
    loss_sum: float = 0.0  # since the last evaluation
    loss_count: int = 0

    def numbers(self) -> dict[str, Any]:
        """As they are written."""
        best = self.best
        return {
            "step": self.step,
            "best_step": best.step,
            "best_metric": best.metric,
            "stale": best.stale,
            "bests": list(self.bests),
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
        }

    @classmethod
    def of(cls, numbers: dict[str, Any]) -> _Progress:
        """As they were written; older ones are of evaluations, and of runs that did not end early."""
        best = Best(numbers["best_step"], numbers["best_metric"], numbers.get("stale", 0))
        loss = numbers.get("loss_sum", 0.0), numbers.get("loss_count", 0)
        return cls(numbers["step"], best, tuple(numbers["bests"]), *loss)


class DistributedTrainer:
    """A run in a folder that all ranks see and rank 0 alone writes to, but for the checkpoints."""

    def __init__(
        self, run: RunFolder, splits: Splits, learner: DistributedLearner, spread: Spread, display: Display
    ) -> None:
        self.run, self.config, self.splits, self.learner = run, run.config, splits, learner
        self.spread, self.display = spread, display
        self.monitor = Monitor(self.config, splits)
        self.checkpoints = Checkpoints(run.path, self.config.checkpoints)
        self.progress = _Progress()
        latest = self.checkpoints.latest()
        if latest is not None:
            numbers = learner.load(latest)
            learner.clock.load_state_dict(numbers["clock"])
            self.progress = _Progress.of(numbers)

    def run_to_the_end(self) -> Summary:
        """Train the steps that are left, or until there was no better one for too long; write the final numbers."""
        with ExitStack() as stack:
            logs = (
                _Logs(stack, self.run, self.display, self.progress.step) if self.learner.rank == 0 else None
            )
            self._train(logs, stack.enter_context(agreed_stop()))
        return self._finish()

    def _train(self, logs: _Logs | None, stop: AgreedStop) -> None:
        while self.progress.step < self.config.steps and not self.progress.best.ends(self.config):
            loss = self.learner.train_step(self.progress.step)
            if not math.isfinite(loss):  # that of the whole batch, the same on all ranks
                raise Diverged.by(f"step {self.progress.step + 1}: the loss is {loss}")
            p = self.progress
            self.progress = p._replace(
                step=p.step + 1, loss_sum=p.loss_sum + loss, loss_count=p.loss_count + 1
            )
            if logs is not None:
                logs.shown.step(self.progress.step, loss)
            stopped = stop.behind_a_step()
            if self._evaluation_is_due():
                row = self._evaluate()
                if logs is not None:
                    logs.write(row, self.learner, is_best=self.progress.best.step == self.progress.step)
                if stopped or is_saved(self.progress.step, self.progress.best, self.config):
                    self._save()
            elif stopped:
                self.learner.agree_on_buffers()
                self._save()
            if stopped:
                stop.close()
                raise Interrupted(self.run.path, self.progress.step, RESUME_DISTRIBUTED)

    def _evaluation_is_due(self) -> bool:
        step = self.progress.step
        return step % self.config.evaluation.every == 0 or step == self.config.steps

    def _evaluate(self) -> dict[str, Any]:
        """The row of `ccp_fast.training.trainer`, with the retrieval of all ranks."""
        learner = self.learner
        with learner.clock("evaluation"):
            learner.agree_on_buffers()
            retrieval = self.monitor.measure(learner.evaluate)
        row = evaluation_row(
            step=self.progress.step,
            subproblem=None if learner.ccp is None else learner.ccp.subproblem,
            lr=learner.lr,
            loss=self.progress.loss_sum / self.progress.loss_count,
            retrieval=retrieval,
            proxy_spread=learner.proxy_spread,
            clock=learner.clock,
        )
        best = self.progress.best.after(row, self.config)
        self.progress = self.progress._replace(best=best, loss_sum=0.0, loss_count=0)
        if learner.ccp is not None:
            learner.ccp.update(monitored(row))
        return row

    def _save(self) -> None:
        """A checkpoint, and of the best step so far the network as `load_model` reads it."""
        with self.learner.clock("saving"):
            self._save_all()

    def _save_all(self) -> None:
        step, best = self.progress.step, self.progress.best.step
        bests = (*self.progress.bests, best)[-self.config.checkpoints.keep :]
        self.progress = self.progress._replace(bests=bests)
        clock = [self.learner.clock.state_dict()]
        dist.broadcast_object_list(clock, src=0)  # all ranks write the same numbers
        self.learner.save(self.checkpoints.at(step), {**self.progress.numbers(), "clock": clock[0]})
        if best == step:
            self._export()
        if self.learner.rank == 0:
            self.checkpoints.prune(bests)

    def _export(self) -> None:
        weights = self.learner.weights()
        if self.learner.rank == 0:
            export(self.run.path / NAME, weights, self.config, cast(int, self.progress.best.step))

    def _finish(self) -> Summary:
        """Numbers on the test classes, at the step that was best on the validation classes; without any, the last."""
        best = self.progress.best
        self.learner.load(self.checkpoints.at(cast(int, best.step)))  # the last step is always evaluated
        self._export()  # also where the run was stopped between a checkpoint and its network
        summary = final_numbers(
            self.config,
            self.learner.clock,
            step=self.progress.step,
            best=best,
            test=self.learner.evaluate(self.splits.test, final_metrics(self.config)),
            parameters=self.learner.parameters,
        ) | _described(self.spread)
        if self.learner.rank == 0:
            self.run.write_json("summary.json", summary)
        return summary


class _Logs:
    """What rank 0 writes rows to: the run's folder, its loggers and the screen. The stack closes them."""

    def __init__(self, stack: ExitStack, run: RunFolder, display: Display, step: int) -> None:
        self._records = Records(run, step)
        stack.callback(self._records.close)
        self.shown: TrainingDisplay = stack.enter_context(display.training(run.config, step))

    def write(self, row: dict[str, Any], learner: DistributedLearner, *, is_best: bool) -> None:
        """An evaluation, and the sub-problems of CCP that began before it."""
        self._records.subproblems([] if learner.ccp is None else learner.ccp.history)
        self._records.evaluation(row)
        self.shown.row(row, is_best=is_best)
