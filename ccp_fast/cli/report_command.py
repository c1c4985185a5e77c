"""`ccp-report`: runs side by side in one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccp_fast.cli.errors import one_sentence
from ccp_fast.training.report import write_runs_report

app = typer.Typer(
    add_completion=False, rich_markup_mode=None, context_settings={"help_option_names": ["-h", "--help"]}
)


@app.command()
def command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, finished or not.")],
    out: Annotated[Path, typer.Option(help="Page to write.")] = Path("report.html"),
) -> None:
    """Show what runs reached, how they went and where their settings differ, in one page that loads nothing."""
    with one_sentence():
        print(f"report: {write_runs_report(runs, out)}")
