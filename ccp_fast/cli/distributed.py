"""`torchrun ... ccp-train distributed`: training over many processes."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, NoReturn, cast

import torch.distributed as dist
import typer

from ccp_fast.cli.errors import WRONG_INPUT, one_sentence
from ccp_fast.cli.evaluate_command import shown
from ccp_fast.cli.moved import moved_settings
from ccp_fast.distributed import RankLost, clear_errors
from ccp_fast.training.compare import STOPPED
from ccp_fast.training.display import Display
from ccp_fast.training.distributed import Spread, resume, train
from ccp_fast.training.distributed.learner import Wrapper
from ccp_fast.training.errors import UserError
from ccp_fast.training.interrupt import Interrupted
from ccp_fast.training.presets import configured
from ccp_fast.training.records import Summary
from ccp_fast.training.report import write_run_report
from ccp_fast.training.run_folder import RunFolder

LOST = 3


def distributed(
    out: Annotated[Path, typer.Option(help="Folder of the run, which all processes see.")],
    network: Annotated[
        str | None, typer.Option(help="What the network is wrapped in: ddp, the default, or fsdp.")
    ] = None,
    sample_rate: Annotated[
        float | None,
        typer.Option(help="Share of the classes that take part in a step, up to 1, the default."),
    ] = None,
    loss: Annotated[str | None, typer.Option(help="As in ccp-train.")] = None,
    method: Annotated[str | None, typer.Option(help="Way to train: plain or ccp.")] = None,
    data: Annotated[str | None, typer.Option(help="As in ccp-train.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data set, on every machine.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of weights, batches and augmentation.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each process.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting; may be repeated.")
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, with any number of processes; its data may lie elsewhere.",
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for a process that does not answer.")
    ] = 600.0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Train with sharded proxies, the network under DDP or FSDP2."""
    first = os.environ.get("RANK") == "0"
    display = Display(quiet=quiet or not first)
    with one_sentence(), _said_once(first):
        if "WORLD_SIZE" not in os.environ:
            raise UserError(
                "ccp-train distributed: expected to be started by torchrun, which sets WORLD_SIZE"
            )
        if network not in (None, "ddp", "fsdp"):
            raise UserError(f"--network: expected ddp or fsdp, got {network!r}")
        if sample_rate is not None and not 0 < sample_rate <= 1:
            raise UserError(f"--sample-rate: expected more than 0, up to 1, got {sample_rate:g}")
        wrapper = cast(Wrapper | None, network)
        flags = {
            "loss.name": loss,
            "method": method,
            "data.name": data,
            "data.root": data_root and data_root.resolve(),
            "steps": steps,
            "seed": seed,
            "threads": threads,
        }
        others = [sample_rate, config, *(value for key, value in flags.items() if key != "data.root")]
        wanted = (
            moved_settings(out, settings, data_root, others)
            if again
            else configured(config, settings or (), flags)
        )
    with one_sentence():
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        try:
            if again:
                outcome = _outcome(lambda: resume(out, wrapper, display, wanted))
            else:
                spread = Spread(wrapper or "ddp", sample_rate or 1.0)
                outcome = _outcome(lambda: train(out, wanted, spread, display))
            with clear_errors("end"):
                dist.barrier()  # nobody takes connections down that another still uses
        except RankLost as error:
            _end(LOST, str(error))  # a group that has lost a member cannot be taken down in order
        except UserError as error:
            _end(WRONG_INPUT, str(error))
        gc.collect()  # workers that decode images, DDP: what has threads or processes of its own and lies in cycles
        dist.destroy_process_group()
        if isinstance(outcome, Interrupted):
            _end(STOPPED, str(outcome) if first else "")
        if first:
            _report(out, outcome, display)
        _end(0)


def _outcome(run: Callable[[], Summary]) -> Summary | Interrupted:
    """All ranks stop together, and part as they do at the end."""
    try:
        return run()
    except Interrupted as stopped:
        return stopped


@contextmanager
def _said_once(first: bool) -> Iterator[None]:
    """What is wrong with a command line is wrong on every rank."""
    try:
        yield
    except UserError:
        if first or "RANK" not in os.environ:
            raise
        raise typer.Exit(WRONG_INPUT) from None


def _report(path: Path, summary: Summary, display: Display) -> None:
    """By rank 0 alone, for as long as it takes."""
    seconds = summary["seconds"]["training"]
    display.say(
        f"unseen classes: {shown(summary['test'])}  (step {summary['best_step']}, {seconds:.0f} s of training, "
        f"{summary['processes']} processes)"
    )
    display.say(f"report: {write_run_report(RunFolder.open(path))}")


def _end(code: int, sentence: str = "") -> NoReturn:
    """Without the interpreter's own end; files and loggers are closed by now.

    With FSDP2, caches of torch's DTensors hold the group's threads beyond `destroy_process_group`. Where these ran into
    the end of the interpreter, a finished run was once aborted.
    """
    if sentence:
        print(sentence, file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
