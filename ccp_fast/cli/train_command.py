"""Options of `ccp-train`, and what is printed when something is wrong with them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from ccp_fast.cli.distributed import distributed
from ccp_fast.cli.embed_command import embed
from ccp_fast.cli.errors import one_sentence
from ccp_fast.cli.evaluate_command import evaluate, shown
from ccp_fast.cli.moved import moved_settings
from ccp_fast.cli.options import given, refuse_before_a_command, refuse_without_effect
from ccp_fast.cli.plan import plan
from ccp_fast.training import compare, protocols
from ccp_fast.training.config import explained, with_settings
from ccp_fast.training.datasets import DATASETS
from ccp_fast.training.display import Display
from ccp_fast.training.errors import UserError
from ccp_fast.training.measure import Tested
from ccp_fast.training.methods import run_name
from ccp_fast.training.presets import configured
from ccp_fast.training.records import Summary
from ccp_fast.training.report import write_comparison_report, write_run_report
from ccp_fast.training.run_folder import RunFolder, last_unfinished, numbered
from ccp_fast.training.settings import Config

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,  # it takes [n, dim] for markup
    context_settings={"help_option_names": ["-h", "--help"]},
    subcommand_metavar="[evaluate|embed|distributed|plan]",
)
app.command()(evaluate)
app.command()(embed)
app.command()(distributed)
app.command()(plan)

RUNS, AUTO = Path("runs"), Path("auto")


@app.callback(invoke_without_command=True)
def command(
    context: typer.Context,
    loss: Annotated[
        str | None,
        typer.Option(
            help="c1, c2 (contrastive), triplet, multi_similarity (ms), lifted_structure, proxy_nca, proxy_anchor, "
            "soft_triple, margin_softmax. The proxies of proxy_nca, proxy_anchor and soft_triple learn at a hundred "
            "times the network's rate, as is customary; at the same: --set optimizer.proxies=same."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="plain; ccp; alternating (projections onto feasible sets, hard classes); intra-batch (message "
            "passing, without --loss); xbm (cross-batch memory). --show-config has the settings of each."
        ),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            help="With ccp, where proxies are chosen from: images embedded anew (fresh) or the memory of training."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(DATASETS)}. Where images are files, settings begin with those published for the set; "
            "--show-config prints them."
        ),
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None,
    seed: Annotated[
        int | None, typer.Option(help="Random seed of weights, batches and augmentation.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; results are equal to the bit for equal numbers.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="One setting; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to make; by default a new one in runs/.")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN|auto",
            help="Go on with an interrupted run. auto: with that in --out, or with the last one of this name in "
            "runs/ if it has these settings and is not finished; else start. Where the data lie, data.workers, "
            "compute.device and loggers may be others than before.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Write the report of a finished run again.")
    ] = None,
    compare_: Annotated[
        bool,
        typer.Option(
            "--compare", help="Compare ways to train under the same budget and seeds; start again to go on."
        ),
    ] = False,
    losses: Annotated[
        str | None, typer.Option(help="With --compare: losses, for example c1,c2,ms,triplet.")
    ] = None,
    columns: Annotated[
        str, typer.Option(help=f"With --compare: ways to train, some of {', '.join(compare.COLUMNS)}.")
    ] = "plain,ccp",
    seeds: Annotated[str, typer.Option(help="With --compare: random seeds.")] = "0,1,2",
    jobs: Annotated[
        int, typer.Option(min=1, help="With --compare: runs at a time, each on its share of the cores.")
    ] = 1,
    show_config: Annotated[bool, typer.Option("--show-config", help="Print all settings and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Train an embedding; without options C2 with CCP on the glyph set, in under three minutes."""
    if context.invoked_subcommand is not None:
        with one_sentence():
            refuse_before_a_command(given(context), context.invoked_subcommand)
        return
    display, tested = Display(quiet=quiet), list[Tested]()
    with one_sentence():
        refuse_without_effect(given(context), finds_its_run=resume == AUTO)
        if resume is not None and resume != AUTO:
            wanted = moved_settings(resume, settings, data_root)
            _finish(resume, protocols.resume(resume, display, wanted, tested.append), display, tested)
            return
        if report is not None:
            display.say(f"report: {write_run_report(RunFolder.open(report))}")
            return
        flags = {
            "loss.name": loss,
            "method": method,
            "ccp.pool": pool,
            "data.name": data,
            "data.root": data_root and data_root.resolve(),  # a run may go on from another folder
            "steps": steps,
            "seed": seed,
            "threads": threads,
        }
        base = configured(config, settings or (), flags)
        if show_config:
            print(explained(base), end="")
        elif compare_:
            names = losses.split(",") if losses else [str(base.loss.name)]
            _compare(
                base,
                out or RUNS / "compare",
                names,
                columns.split(","),
                _numbers("--seeds", seeds),
                jobs,
                display,
            )
        else:
            name, start = run_name(base), protocols.train
            path = out or numbered(RUNS, name)
            if resume == AUTO:
                start = protocols.train_or_resume
                path = out or last_unfinished(RUNS, base, name) or path
            _finish(path, start(base, path, display, tested.append), display, tested)


def _finish(path: Path, summary: Summary, display: Display, tested: list[Tested]) -> None:
    """Say what was reached, and write the report: with what was just measured, if anything was."""
    seconds, best_step = summary["seconds"], summary["best_step"]
    took = f"{seconds['training']:.0f} s of training, {1e3 * seconds['per_step']:.1f} ms a step"
    if summary["test"] is None:
        whole = f"{path.parent} has the numbers on unseen classes once all are trained"
        held_out = summary["val"]["map_at_r"]
        reached = "trained" if held_out is None else f"validation: MAP@R {held_out:.4f}"
        display.say(f"{reached}  (step {best_step}, {took}); {whole}")
        return
    if "separated" in summary:
        count = len(summary["networks"])
        display.say(f"unseen classes, mean of {count} networks: {shown(summary['separated'])}")
        display.say(f"unseen classes, {count} networks concatenated: {shown(summary['test'])}  ({took})")
    else:
        display.say(f"unseen classes: {shown(summary['test'])}  (step {best_step}, {took})")
    display.say(f"report: {write_run_report(RunFolder.open(path), *tested)}")


def _compare(
    base: Config,
    path: Path,
    losses: list[str],
    columns: list[str],
    seeds: list[int],
    jobs: int,
    display: Display,
) -> None:
    if base.threads is None:
        base = with_settings(base, threads=max(1, (os.cpu_count() or 1) // jobs))
    experiment = compare.Experiment(path, base, losses, columns, seeds)
    try:
        experiment.run(compare.run_in_a_process, jobs, display.say)
    except KeyboardInterrupt:
        print(
            f"stopped; finished cells are kept in {path}, start the same command again to go on",
            file=sys.stderr,
        )
        raise typer.Exit(compare.STOPPED) from None
    experiment.write_tables()
    display.say(experiment.markdown())
    display.say(f"report: {write_comparison_report(experiment)}")


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{option}: expected whole numbers such as 0,1,2, got {text!r}") from None
