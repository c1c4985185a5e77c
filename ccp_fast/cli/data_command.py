"""Options of `ccp-data`, and what is printed when something is wrong with them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ccp_fast.cli.errors import WRONG_INPUT, one_sentence
from ccp_fast.data import DataFileError
from ccp_fast.data.glyphs_large import FILE_NAME
from ccp_fast.data.glyphs_large import build as glyphs_large_build
from ccp_fast.training.compare import STOPPED
from ccp_fast.training.config import make_config
from ccp_fast.training.datasets import DATASETS, load_parts, without_broken_parts
from ccp_fast.training.errors import CannotWrite
from ccp_fast.training.workers import worker_count

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def main() -> None:
    """Data sets for `ccp-train`."""


@app.command()
def build(
    name: Annotated[str, typer.Argument(help="glyphs-large.")],
    out: Annotated[Path, typer.Option(help="Folder for the set.")] = Path("glyphs-large"),
    packages: Annotated[
        Path | None, typer.Option(help="Folder with the .deb files, instead of fetching them with apt-get.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes; by default one per core.")] = None,
) -> None:
    """Draw a set from Debian's font packages (162 MB). If it is interrupted, start it again to go on."""
    if name != "glyphs-large":
        _fail(f"name: expected glyphs-large, got {name!r}")
    begun = time.monotonic()
    try:
        with _progress() as say:
            data = glyphs_large_build.build(
                out,
                glyphs_large_build.RECIPE,
                packages=packages,
                jobs=jobs or os.cpu_count() or 1,
                say=say,
            )
    except DataFileError as error:
        _fail(str(error))
    except CannotWrite as error:
        _fail(f"{error}; start the same command again to go on")
    except OSError as error:
        _fail(f"{error.filename or out}: {error.strerror}; start the same command again to go on")
    except KeyboardInterrupt:
        _fail("stopped; start the same command again to go on", STOPPED)
    sizes = data.sizes
    print(
        f"{out / FILE_NAME}: {sizes.sum():,} images of {len(sizes):,} classes, {sizes.min()} to {sizes.max()} each, "
        f"in {len(data.sources)} typefaces, {(out / FILE_NAME).stat().st_size:,} bytes "
        f"({time.monotonic() - begun:.0f} s)"
    )


@app.command()
def check(
    name: Annotated[str, typer.Argument(help=f"{', '.join(DATASETS)}.")],
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data set.")] = None,
    counts: Annotated[str, typer.Option(help="published: those of the whole set; any.")] = "published",
    images: Annotated[
        bool, typer.Option("--images", help="Decode all, and name those that are broken.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode; by default one per core.")
    ] = None,
) -> None:
    """Look whether a data set is there and whole, and count it. Exit code 1 if an image is broken."""
    broken: list[str] = []
    with one_sentence():
        settings = {"name": name, "root": data_root, "counts": counts, "workers": workers}
        config = make_config({"data": settings}).data
        parts = load_parts(config)
        for what, count in parts.counts().items():
            print(f"{what}: {count:,}")
        if images:
            without_broken_parts(parts, worker_count(config.workers), broken.append, trust=False)
    if broken:
        _fail("\n".join([*broken, f"{len(broken):,} images are broken"]), 1)


def _fail(message: str, code: int = WRONG_INPUT) -> None:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


@contextmanager
def _progress() -> Iterator[glyphs_large_build.Progress]:
    """A bar for each stage, on a terminal; lines elsewhere."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        tasks: dict[str, TaskID] = {}

        def say(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    progress.update(task, completed=progress.tasks[task].total)
                tasks[stage] = progress.add_task(stage, total=total)
                if not console.is_terminal:
                    console.print(stage)
            progress.update(tasks[stage], completed=done)

        yield say
