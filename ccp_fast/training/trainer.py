"""The loop: steps, evaluations, checkpoints, and at the end the numbers on classes never seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ccp_fast._system import environment
from ccp_fast.data import EvaluationSet, Splits
from ccp_fast.training.best import Best
from ccp_fast.training.checkpoint import Checkpoint
from ccp_fast.training.config import with_settings
from ccp_fast.training.display import Display
from ccp_fast.training.errors import CannotWrite, Diverged, UserError
from ccp_fast.training.export import NAME, export
from ccp_fast.training.fingerprint import fingerprint
from ccp_fast.training.folds import splits_of
from ccp_fast.training.interrupt import Interrupted, StopRequest
from ccp_fast.training.learner import Learner
from ccp_fast.training.loggers import check_loggers
from ccp_fast.training.measure import Tested, check_evaluation, embedded, final_metrics, measure
from ccp_fast.training.monitor import Monitor, monitored
from ccp_fast.training.records import Records, Summary, evaluation_row, final_numbers
from ccp_fast.training.retention import is_saved
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.settings import Config


def train(
    config: Config, path: Path, display: Display, tested: Callable[[Tested], object] | None = None
) -> Summary:
    """Train from the start into a new folder; returns the final numbers, also in its summary.json.

    tested: told what was measured of the test classes, for who writes a report behind it.

    Raises UserError for a folder that exists or settings that do not fit the data, Interrupted after Ctrl-C.
    """
    config = with_settings(config, threads=config.threads or torch.get_num_threads())
    splits = checked_splits(config)
    run = RunFolder.create(path, config, environment.describe(config.threads or 1), fingerprint(splits))
    with run.lock():
        return Trainer(run, splits, display, tested=tested).run_to_the_end()


def checked_splits(config: Config) -> Splits:
    """The splits of a run; what is wrong with its settings shows here, before a folder is made. UserError."""
    check_loggers(config)
    check_evaluation(config)
    splits = splits_of(config)
    Learner(config, splits.train)
    return splits


def resume(
    path: Path,
    display: Display,
    wanted: Config | None = None,
    tested: Callable[[Tested], object] | None = None,
) -> Summary:
    """Go on with an interrupted run, to the same bits as an unbroken one; of a finished one, its numbers.

    wanted: the same settings, but for those of the machine it goes on on. UserError for others, or for other data.
    tested: as of `train`; of a finished run it hears nothing.
    """
    run = RunFolder.open(path)
    if wanted is not None:
        run.move(wanted)
    finished = run.summary
    if finished is not None:
        return finished
    run.check_trained_by(processes=False)
    check_evaluation(run.config)
    with run.lock():
        saved, splits = run.latest(), splits_of(run.config)
        run.check_same_data(splits)
        trainer = Trainer(run, splits, display, pretrained=saved is None, tested=tested)
        if saved is not None:
            trainer.restore(saved)
        return trainer.run_to_the_end()


def set_up_torch(config: Config) -> None:
    """Threads, and no operation whose bits differ from run to run."""
    torch.set_num_threads(config.threads or torch.get_num_threads())
    # As use_deterministic_algorithms(True), without its import of the whole inductor, and without filling
    # new memory with NaN, which helps to debug and costs time.
    # On a GPU max-pooling has no such gradient.
    torch.set_deterministic_debug_mode("error" if config.compute.device == "cpu" else "warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


class Trainer:
    """A run in a folder. All state that training depends on is in the learner, `best` and the two numbers below."""

    def __init__(
        self,
        run: RunFolder,
        splits: Splits,
        display: Display,
        *,
        pretrained: bool = True,
        tested: Callable[[Tested], object] | None = None,
    ) -> None:
        self.run, self.config, self.splits, self.display = run, run.config, splits, display
        self.tested = tested
        set_up_torch(self.config)
        self.learner = Learner(self.config, splits.train, pretrained=pretrained)
        self.monitor = Monitor(self.config, splits)
        self.best = Best()
        self.loss_sum, self.loss_count = 0.0, 0  # since the last evaluation

    def restore(self, saved: Checkpoint) -> None:
        """Go on from a checkpoint: what was logged or saved after it is dropped."""
        self.learner.load_state_dict(saved.state["learner"])
        # "stale" is not in older checkpoints, whose runs did not end early.
        self.best = Best(saved.best_step, saved.state["best_metric"], saved.state.get("stale", 0))
        self.loss_sum, self.loss_count = saved.state["loss_sum"], saved.state["loss_count"]
        self.run.forget_after(saved.step)

    def run_to_the_end(self) -> Summary:
        """Train the steps that are left, or until there was no better one for too long; evaluate, report."""
        records = Records(self.run, self.learner.step)
        try:
            with StopRequest() as stop, self.display.training(self.config, self.learner.step) as progress:
                while self.learner.step < self.config.steps and not self.best.ends(self.config):
                    if stop.requested:
                        self._save()
                        raise Interrupted(self.run.path, self.learner.step)
                    loss = self.learner.train_step()
                    if not math.isfinite(loss):
                        raise Diverged.by(f"step {self.learner.step}: the loss is {loss}")
                    self.loss_sum, self.loss_count = self.loss_sum + loss, self.loss_count + 1
                    progress.step(self.learner.step, loss)
                    if self._evaluation_is_due():
                        records.subproblems(self.learner.method.subproblems)
                        row = self._evaluate()
                        records.evaluation(row)
                        if is_saved(self.learner.step, self.best, self.config):
                            self._save()
                        progress.row(row, is_best=self.best.step == self.learner.step)
            return self._finish()
        except CannotWrite as error:
            last = self.run.last_saved()
            at = "it has no checkpoint yet" if last is None else f"it is saved up to step {last}"
            raise UserError(f"{error}; {at}, go on with: ccp-train --resume {self.run.path}") from None
        finally:
            records.close()

    def _evaluation_is_due(self) -> bool:
        return self.learner.step % self.config.evaluation.every == 0 or self.learner.step == self.config.steps

    def _evaluate(self) -> dict[str, Any]:
        """A row, which the method and the choice of the best step hear of."""
        with self.learner.clock("evaluation"):
            retrieval = self.monitor.measure(self._retrieval)
        method = self.learner.method
        row = evaluation_row(
            step=self.learner.step,
            subproblem=method.subproblem,
            lr=self.learner.optimizer.param_groups[0]["lr"],
            loss=self.loss_sum / self.loss_count,
            retrieval=retrieval,
            proxy_spread=method.proxy_spread,
            clock=self.learner.clock,
        )
        self.best = self.best.after(row, self.config)
        method.after_evaluation(monitored(row))
        self.loss_sum, self.loss_count = 0.0, 0
        return row

    def _save(self) -> None:
        with self.learner.clock("saving"):
            state = {
                "learner": self.learner.state_dict(),
                "best_metric": self.best.metric,
                "stale": self.best.stale,
                "loss_sum": self.loss_sum,
                "loss_count": self.loss_count,
            }
            # Where the last is reported, and not every evaluation is saved, an earlier one has left no file to name.
            best = self.best.step if self.config.protocol.holds_out else self.learner.step
            self.run.save(Checkpoint(self.learner.step, best, state))

    def _finish(self) -> Summary:
        """Numbers on the test classes, at the step that was best on the validation classes; without any, the last."""
        assert self.best.step is not None  # the last step is always evaluated
        step = self.learner.step
        self.learner.load_weights(self.run.at(self.best.step).state["learner"])
        summary = final_numbers(
            self.config,
            self.learner.clock,
            step=step,
            best=self.best,
            test=self._test(),
            parameters=sum(p.numel() for p in self.learner.model.parameters()),
        )
        export(self.run.path / NAME, self.learner.network.state_dict(), self.config, self.best.step)
        self.run.write_json("summary.json", summary)
        return summary

    def _test(self) -> dict[str, float] | None:
        """None where this is one of several networks: test classes are looked at when all are trained."""
        if self.config.protocol.network is not None:
            return None
        vectors, normalize = embedded(self.learner.embed, self.splits.test), self.learner.method.normalize
        if self.tested is not None:
            self.tested(Tested(self.splits, vectors, normalize))
        return measure(vectors, self.splits.test, final_metrics(self.config), normalize, self.config)

    def _retrieval(self, images: EvaluationSet, metrics: tuple[str, ...]) -> dict[str, float]:
        """With distances between vectors as the loss sees them."""
        vectors = embedded(self.learner.embed, images)
        return measure(vectors, images, metrics, self.learner.method.normalize, self.config)
