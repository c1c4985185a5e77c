"""`ccp-train distributed` on the tiny data set, as a script for torchrun."""

from __future__ import annotations

import typer
from tiny_training import images

from ccp_fast.cli.distributed import distributed
from ccp_fast.training import datasets

if __name__ == "__main__":
    datasets.glyphs = images  # type: ignore[assignment]
    app = typer.Typer()
    app.command()(distributed)
    app()
