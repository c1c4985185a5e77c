"""Options of `ccp-bench`. A new device is a new subcommand."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from ccp_fast.bench import ceilings, machine, report, results
from ccp_fast.bench.case import Size
from ccp_fast.bench.cases import all_cases, select
from ccp_fast.bench.gpu.command import gpu
from ccp_fast.bench.results import Row
from ccp_fast.bench.runner import Options, measure
from ccp_fast.bench.tables import console

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
)

WRONG_INPUT = 2
INTERRUPTED = 130


@app.callback()
def _bench() -> None:
    """Microbenchmarks beside the floor of bytes and FLOPs, the best eager PyTorch and other libraries."""


@app.command()
def cpu(
    quick: Annotated[
        bool, typer.Option("--quick", help="Small shapes, in under a minute; no figures to quote.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS", help="Run only these families, cases or settings, such as losses or c2,k-center."
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of torch and of the operators.")] = 2,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Seconds of timing per case (2, with --quick 0.2); three rounds at least."
        ),
    ] = None,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Time torch.compile as well: 10 to 60 s more per case.")
    ] = False,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Leave out peak memory.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Keep the rows as JSON; in a folder under a name of their own."),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show the change since an older --out.")
    ] = None,
) -> None:
    """Measure every operator on the CPU, beside its competitors. Time, peak extra memory and error."""
    size: Size = "quick" if quick else "full"
    try:
        cases = select(all_cases(size), only)
        before = results.read_rows(compare) if compare else None
        if out is not None and not out.parent.is_dir():
            raise ValueError(f"--out: expected a folder that exists, or a file in one, got {out}")
    except ValueError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from None

    torch.set_num_threads(threads)
    seconds = seconds if seconds is not None else (0.2 if quick else 2.0)
    options = Options(size, seconds, threads, compile_, memory=not no_memory)
    facts, load, screen = machine.facts(threads), machine.Load.now(), console()
    screen.print(
        f"{facts['device']}, {facts['cores']} cores, {facts['instructions']}; {threads} threads; "
        f"torch {torch.__version__}; commit {facts['commit']}; load average {load.at_start}",
        highlight=False,
    )
    with load.watched():
        top = ceilings.measure(threads, megabytes=20 if quick else 100)
    report.show_ceilings(screen, top)
    report.show_load(screen, load)
    rows, finished = [], False
    try:
        for i, case in enumerate(cases, 1):
            with screen.status(f"{i}/{len(cases)} {' '.join(case.key)}"):
                rows.append(measure(case, options, top, load))
            report.show_progress(screen, rows[-1], i, len(cases))
        finished = True
    except KeyboardInterrupt:
        screen.print("interrupted: what follows is what was finished")
    _show(screen, rows, load)
    if before is not None:
        devices = ", ".join(sorted({row["device"] for row in before}))
        report.show_changes(screen, results.compare(rows, threads, before), facts["device"], devices)
    if out is not None:
        target = out / results.file_name("cpu", facts) if out.is_dir() else out
        watched = {"at_start": load.at_start, "others": load.share}
        run = {"size": size, "seconds": seconds, "ceilings": vars(top), "load": watched}
        target.write_text(results.to_json(rows, facts, run), encoding="utf-8")
        screen.print(f"{len(rows)} rows in {target}", highlight=False)
    if not finished:
        raise typer.Exit(INTERRUPTED)


app.command()(gpu)


def _show(screen: Console, rows: list[Row], load: machine.Load) -> None:
    report.show_rows(screen, rows)
    report.show_aims(screen, rows)
    report.show_load(screen, load)
