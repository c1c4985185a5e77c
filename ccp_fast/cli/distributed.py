"""`torchrun ... ccp-train distributed`: training over many processes."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import torch.distributed as dist
import typer

from ccp_fast.distributed import RankLost, clear_errors
from ccp_fast.training.config import load_config
from ccp_fast.training.distributed import train
from ccp_fast.training.errors import UserError

WRONG_INPUT, LOST = 2, 3


def distributed(
    out: Annotated[Path, typer.Option(help="Folder of the run, which all processes see.")],
    network: Annotated[str, typer.Option(help="ddp or fsdp.")] = "ddp",
    sample_rate: Annotated[float, typer.Option(help="Part of the classes that take part in a step.")] = 1.0,
    loss: Annotated[str | None, typer.Option(help="As of ccp-train.")] = None,
    method: Annotated[str | None, typer.Option(help="plain, to one proxy a class, or ccp.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, batches and augmentation.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting; may be repeated.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out, with any number of processes.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(help="Seconds to wait for a process that does not answer.")
    ] = 600.0,
) -> None:
    """Train with sharded proxies, the network under DDP or FSDP2."""
    if network not in ("ddp", "fsdp") or not 0 < sample_rate <= 1:
        _stop(
            f"expected --network ddp or fsdp and a --sample-rate up to 1, got {network} and {sample_rate}", 2
        )
    if "WORLD_SIZE" not in os.environ:
        _stop("ccp-train distributed: expected to be started by torchrun, which sets WORLD_SIZE", WRONG_INPUT)
    given = [loss, method, steps, seed, config, settings]
    try:
        if resume and any(value is not None for value in given):
            raise UserError("--resume: a run goes on with the settings it has; give no others beside it")
        flags = {"loss.name": loss, "method": method, "steps": steps, "seed": seed}
        wanted = None if resume else load_config(config, settings or (), flags)
    except UserError as error:
        _stop(str(error), WRONG_INPUT)
    dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
    say = typer.echo if dist.get_rank() == 0 else (lambda text: None)
    try:
        train(out, wanted, network, sample_rate, say)  # type: ignore[arg-type]
        with clear_errors("end"):
            dist.barrier()  # nobody takes connections down that another still uses
    except UserError as error:
        _stop(str(error) if dist.get_rank() == 0 else "", WRONG_INPUT)
    except RankLost as error:
        print(error, file=sys.stderr)
        os._exit(LOST)  # a group that has lost a member cannot be taken down in order
    dist.destroy_process_group()
    # The threads of gloo's other groups end in no order with the interpreter, which once aborted a finished run.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _stop(message: str, code: int) -> None:
    if message:
        print(message, file=sys.stderr)
    raise typer.Exit(code)
