"""`ccp-bench gpu`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from ccp_fast.bench import report, results
from ccp_fast.bench.case import Case, Size
from ccp_fast.bench.cases import select
from ccp_fast.bench.cases.gpu import gpu_cases
from ccp_fast.bench.gpu import ceilings, machine
from ccp_fast.bench.gpu import report as gpu_report
from ccp_fast.bench.gpu.device import Gpu
from ccp_fast.bench.gpu.runner import LeftOut, Options, measure
from ccp_fast.bench.results import Row
from ccp_fast.bench.tables import console

FAILED = 1
WRONG_INPUT = 2
INTERRUPTED = 130
_BUSY = 5.0  # percent of the GPU that others may use


def gpu(
    quick: Annotated[
        bool, typer.Option("--quick", help="Small shapes: does it run? No figures to quote.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="WORDS",
            help="Run only these families, cases, settings or precisions, such as losses or k-center,1e6+bfloat16 "
            "(+: both).",
        ),
    ] = None,
    device: Annotated[int, typer.Option(min=0, help="Number of the CUDA device.")] = 0,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Seconds of timing per case (1, with --quick 0.1); three rounds at least."
        ),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SECONDS",
            help="Begin no case after so many seconds; the most telling come first.",
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs of our step whose bits are compared.")] = 100,
    compile_: Annotated[bool, typer.Option("--compile", help="Time torch.compile as well.")] = False,
    kernels: Annotated[bool, typer.Option("--kernels", help="Show each of our kernels by itself.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Keep the rows as JSON, after every case; in a folder under a name of their own.",
        ),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Show the change since an older --out.")
    ] = None,
) -> None:
    """Measure every operator on a GPU, beside its competitors. Time, kernels, memory, error and bits.

    Ends with 1 if a case failed, erred against float64 by more than twice what eager PyTorch does, or gave other bits
    in another run; with 2 where there is no GPU.
    """
    size: Size = "quick" if quick else "full"
    try:
        cases = select(gpu_cases(size, f"cuda:{device}"), only)
        before = results.read_rows(compare) if compare else None
        if out is not None and not out.parent.is_dir():
            raise ValueError(f"--out: expected a folder that exists, or a file in one, got {out}")
        problem = machine.missing()
        if problem is None and device >= torch.cuda.device_count():
            problem = f"--device: expected 0 to {torch.cuda.device_count() - 1}, got {device}"
        if problem is not None:
            raise ValueError(problem)
    except ValueError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from None

    seconds = seconds if seconds is not None else (0.1 if quick else 1.0)
    run = Run(cases, Options(size, seconds, compile_, runs), device, out)
    finished = run.go(limit)
    run.show(kernels)
    if before is not None:
        devices = ", ".join(sorted({row["device"] for row in before}))
        changes = results.compare(run.rows, None, before)
        report.show_changes(run.screen, changes, run.facts["device"], devices)
        gpu_report.show_kernel_changes(run.screen, results.compare_kernels(run.rows, before))
    if not finished:
        raise typer.Exit(INTERRUPTED)
    if run.failures:
        raise typer.Exit(FAILED)


class Run:
    """The cases of one call of the command, and what became of them."""

    def __init__(self, cases: list[Case], options: Options, index: int, out: Path | None) -> None:
        self.cases, self.options, self.index = cases, options, index
        self.screen: Console = console()
        self.facts = machine.facts(index)
        self.target = out
        if out is not None and out.is_dir():
            self.target = out / results.file_name("gpu", self.facts)
        self.rows: list[Row] = []
        self.left_out: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.about: dict[str, Any] = {"size": options.size, "seconds": options.seconds}

    def go(self, limit: float | None) -> bool:
        """Measure case after case; False if interrupted."""
        start = time.perf_counter()
        self._open()
        gpu = Gpu(self.index)
        rates = ceilings.measure(gpu, f"cuda:{self.index}", shrink=4 if self.options.size == "quick" else 1)
        gpu_report.show_ceilings(self.screen, rates)
        self.about["ceilings"] = vars(rates)
        try:
            for i, case in enumerate(self.cases, 1):
                name = " ".join((*case.key, case.precision))
                if limit is not None and time.perf_counter() - start > limit:
                    self.left_out[name] = f"--limit: {limit:g} seconds were over"
                    continue
                self.screen.print(f"{i}/{len(self.cases)} {name}", highlight=False)
                if not self._one(name, case, rates, gpu):
                    break
                self.about["state_after"] = machine.state(self.index)
                self._write()
        except KeyboardInterrupt:
            self.screen.print("interrupted: what follows is what was finished")
            return False
        finally:
            self._write()
        return True

    def _open(self) -> None:
        facts, busy = self.facts, machine.utilization(self.index)
        self.about["utilization_before"] = busy
        self.about["state_before"] = machine.state(self.index)
        self.screen.print(
            f"{facts['device']}, compute capability {facts['compute_capability']}, driver {facts['driver']}; "
            f"torch {torch.__version__}, CUDA {torch.version.cuda}; commit {facts['commit']}",
            highlight=False,
        )
        if busy is not None and busy > _BUSY:
            self.screen.print(f"[bold red]The GPU is busy: {busy:.0f} %. Times are off.[/bold red]")

    def _one(self, name: str, case: Case, rates: ceilings.Rates, gpu: Gpu) -> bool:
        """False: the device is of no more use."""
        try:
            row = measure(case, self.options, rates, gpu)
        except LeftOut as reason:
            self.left_out[name] = str(reason)
            return True
        # One broken kernel must not cost the figures of all others; the list of failures and the exit code tell it.
        except Exception as error:
            self.failures[name] = f"{type(error).__name__}: {error}"
            return self._usable(gpu)
        self.rows.append(row)
        wrong = list(row.wrong)
        if row.gpu and row.gpu.differing:
            wrong.append(f"{row.gpu.differing} of {row.gpu.runs} runs gave other bits than the first")
        if wrong:
            self.failures[name] = "; ".join(wrong)
        return True

    def _usable(self, gpu: Gpu) -> bool:
        """After an illegal access nothing else works in this process."""
        try:
            gpu.wait()
        except RuntimeError as error:
            self.failures["every case after it"] = f"the device gave up: {error}"
            return False
        return True

    def show(self, kernels: bool) -> None:
        """What was found."""
        gpu_report.show_rows(self.screen, self.rows)
        if kernels:
            gpu_report.show_kernels(self.screen, self.rows)
        report.show_aims(self.screen, self.rows)
        gpu_report.show_missing(self.screen, self.left_out, self.failures)
        if self.target is not None:
            self.screen.print(f"{len(self.rows)} rows in {self.target}", highlight=False)

    def _write(self) -> None:
        """Whole or not at all, so that a run that is killed leaves what it had."""
        if self.target is None:
            return
        more = {**self.about, "left_out": self.left_out, "failures": self.failures}
        draft = self.target.with_suffix(".part")
        draft.write_text(results.to_json(self.rows, self.facts, more), encoding="utf-8")
        draft.replace(self.target)
