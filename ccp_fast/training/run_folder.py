"""The folder of a run: what lies where, and the promise that nothing in it is overwritten.

config.yaml          all settings, as `ccp-train --config` reads them; those of the machine as of the last start
environment.json     versions, processor, commit
data.json            classes and images of each split, and a fingerprint of them
metrics.jsonl .csv   a row per evaluation
subproblems.jsonl .csv  a row per sub-problem of CCP
tensorboard/         the same as events
wandb/ wandb-id      as Weights & Biases keeps them, and under which id it knows the run
checkpoints/         step-00004000.safetensors: the last two, and the best one of each; of `ccp-train distributed`
                     folders step-00004000 with the parts of all processes
best.safetensors     the network at the best step, for `ccp_fast.training.load_model`
summary.json         the final numbers; a run that has it is finished
report.html
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ccp_fast._system.files import remove_unfinished, sync_folder, write_atomically
from ccp_fast._system.lock import only_process
from ccp_fast.data import Splits
from ccp_fast.training import checkpoint
from ccp_fast.training.checkpoint import Checkpoint
from ccp_fast.training.config import MOVABLE, differing, load_config, moved, to_yaml, value_of, with_settings
from ccp_fast.training.errors import CannotWrite, UserError
from ccp_fast.training.fingerprint import check_same_data, fingerprint
from ccp_fast.training.published import as_stored, settled
from ccp_fast.training.retention import needed_steps
from ccp_fast.training.settings import Config

log = logging.getLogger(__name__)

RESUME_DISTRIBUTED = "torchrun ... ccp-train distributed --resume --out"


class RunFolder:
    """An existing run folder; made by `create`, found by `open`."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path = path
        self.config = config

    @classmethod
    def create(
        cls,
        path: Path,
        config: Config,
        environment: Mapping[str, object],
        data: Mapping[str, object] | None = None,
    ) -> RunFolder:
        """A new folder that appears complete or not at all, with `config` settled.

        data: a `fingerprint`; None for a run of several networks, of which each has its own.
        UserError if there is anything at `path`.
        """
        config = settled(config)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists already: choose another folder, or go on with --resume {path}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        except OSError as error:
            raise UserError(f"{path} cannot be made: {error.strerror}") from None
        try:
            draft.chmod(0o755)
            (draft / "checkpoints").mkdir()
            write_atomically(draft / "config.yaml", to_yaml(config))
            write_atomically(draft / "environment.json", json.dumps(environment, indent=2) + "\n")
            if data is not None:
                write_atomically(draft / "data.json", json.dumps(data, indent=2) + "\n")
            draft.rename(path)  # replaces an empty folder at most
        except (OSError, CannotWrite) as error:
            shutil.rmtree(draft, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path} cannot be made: {reason}") from None
        sync_folder(path.parent)
        return cls(path, config)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """A folder that `create` made. UserError if it is none."""
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path} is not a run folder: it has no config.yaml")
        return cls(path, as_stored(load_config(path / "config.yaml")))

    @classmethod
    def prolong(cls, path: Path, finished: RunFolder, steps: int) -> RunFolder:
        """A copy of a finished run with more steps to go: at a constant rate the same as a longer run so far.

        UserError if there is anything at `path`, or if what was done would have depended on the number of steps.
        """
        config = finished.config
        check_prolongable(config, str(finished.path))
        if steps < config.steps:
            raise UserError(f"{finished.path}: expected at least its {config.steps} steps, got {steps}")
        made = cls.create(
            path,
            with_settings(config, steps=steps),
            finished.read_json("environment.json") or {},
            finished.read_json("data.json"),
        )
        for kind in ("*.jsonl", "*.csv", "checkpoints/*"):
            for file in finished.path.glob(kind):
                shutil.copyfile(file, made.path / file.relative_to(finished.path))
        return made

    def check_same_settings(self, wanted: Config) -> None:
        """UserError if the run has other settings, but for those of the machine."""
        wanted = settled(wanted)
        for key in differing(self.config, wanted):
            if key not in ("threads", *MOVABLE):
                raise UserError(
                    f"{self.path} was made with other settings ({key}: {value_of(self.config, key)!r} there, "
                    f"{value_of(wanted, key)!r} here): choose another folder with --out"
                )

    def move(self, wanted: Config) -> None:
        """Go on where `wanted` says, with as many threads as before: the bits depend on these.

        UserError if it has other settings.
        """
        self.check_same_settings(wanted)
        config = moved(self.config, wanted)
        if config != self.config:
            with self.lock():
                write_atomically(self.path / "config.yaml", to_yaml(config))
            self.config = config

    def check_same_data(self, splits: Splits) -> None:
        """UserError if these are not the data that the run began with."""
        began_with = self.read_json("data.json")
        if began_with is not None:  # older runs have none
            check_same_data(began_with, fingerprint(splits), str(self.path))

    def check_trained_by(self, *, processes: bool) -> None:
        """UserError if it is `ccp-train distributed` that goes on with this run, and that is not asked for; or not."""
        made = (self.read_json("environment.json") or {}).get("distributed") is not None
        if made != processes:
            command = RESUME_DISTRIBUTED if made else "ccp-train --resume"
            raise UserError(
                f"{self.path}: expected another command to go on with this run: {command} {self.path}"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from writing here; a killed one loses its lock. UserError if it is held.

        What a killed process had begun to write is removed.
        """
        with only_process(self.path, UserError(f"{self.path} is being written by another process")):
            remove_unfinished(self.path)
            remove_unfinished(self.path / "checkpoints")
            yield

    def save(self, content: Checkpoint) -> None:
        """Write a checkpoint, then delete those that nothing needs any more."""
        checkpoint.write(self._checkpoint(content.step), content)
        self._prune()

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read together with the best one it names.

        A damaged one stays where it is, with a warning. None: there never was any. UserError: all damaged.
        """
        newest_first = self._checkpoints()[::-1]
        for path in newest_first:
            try:
                content = checkpoint.read(path)
                if content.best_step not in (None, content.step):
                    checkpoint.read(self._checkpoint(content.best_step))
            except checkpoint.DamagedCheckpoint as error:
                log.warning("checkpoint %s cannot be used (%s); trying the one before", path, error)
                continue
            return content
        if newest_first:
            count = len(newest_first)
            raise UserError(
                f"none of the {count} checkpoints in {self.path / 'checkpoints'} can be read: all are damaged"
            )
        return None

    def last_saved(self) -> int | None:
        """The step of the newest checkpoint, whether or not it can be read."""
        checkpoints = self._checkpoints()
        return _step_of(checkpoints[-1]) if checkpoints else None

    def networks(self) -> list[Path]:
        """Folders of the networks that this run trains: of several each has its own, one is here."""
        if not self.config.protocol.is_whole:
            return [self.path]
        return [self.path / f"network-{i}" for i in range(self.config.protocol.count)]

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step. UserError if its file is damaged or gone."""
        try:
            return checkpoint.read(self._checkpoint(step))
        except checkpoint.DamagedCheckpoint as error:
            raise UserError(f"checkpoint {self._checkpoint(step)} cannot be read: {error}") from None

    def forget_after(self, step: int) -> None:
        """Delete checkpoints of later steps, before a run goes on from an older one."""
        for path in self._checkpoints():
            if _step_of(path) > step:
                path.unlink()

    def _prune(self) -> None:
        checkpoints = {_step_of(path): path for path in self._checkpoints()}
        try:
            bests = [
                checkpoint.best_step(path) for path in self._checkpoints()[-self.config.checkpoints.keep :]
            ]
        except checkpoint.DamagedCheckpoint:
            return  # not known what it needs: delete nothing
        for step in checkpoints.keys() - needed_steps(list(checkpoints), bests, self.config.checkpoints):
            checkpoints[step].unlink()

    def _checkpoint(self, step: int) -> Path:
        return self.path / "checkpoints" / f"step-{step:08d}.safetensors"

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("step-*.safetensors"))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """A JSON file, atomically."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON file, None if there is none. UserError if it is damaged."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{self.path / name} cannot be read: {error}") from None
        assert isinstance(content, dict)
        return content

    @property
    def commit(self) -> str:
        """Of the code that began it, shortened; "unknown" outside of a git repository."""
        return str((self.read_json("environment.json") or {}).get("git_commit") or "unknown")[:10]

    @property
    def summary(self) -> dict[str, Any] | None:
        """The final numbers; None while the run is not finished."""
        return self.read_json("summary.json")


def check_prolongable(config: Config, name: str) -> None:
    """UserError, about what is called `name`, if a run of more steps would have done something else from the start."""
    constant = config.method == "plain" and config.optimizer.schedule == "constant"
    if not constant or config.protocol.is_whole or config.evaluation.patience is not None:
        raise UserError(
            f"{name} cannot be prolonged: only a plain run at a constant rate, of one network and without "
            "evaluation.patience, can"
        )


def numbered(parent: Path, name: str) -> Path:
    """`parent/name-001`, or the first number behind all that exist."""
    taken = [
        int(p.name.removeprefix(f"{name}-"))
        for p in parent.glob(f"{name}-*")
        if p.name[len(name) + 1 :].isdecimal()
    ]
    return parent / f"{name}-{max(taken, default=0) + 1:03d}"


def last_unfinished(parent: Path, config: Config, name: str) -> Path | None:
    """The last of the folders `numbered` made that has these settings, on any machine, and no final numbers."""
    config = settled(config)
    # Nobody named the run: another root may hold other data.
    may_differ = {"threads", *MOVABLE} - {"data.root"}
    for path in sorted(parent.glob(f"{name}-*"), reverse=True):
        if (path / "config.yaml").is_file():
            run = RunFolder.open(path)
            if run.summary is None and may_differ.issuperset(differing(run.config, config)):
                return path
    return None


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
