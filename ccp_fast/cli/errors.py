"""What the commands print when something is wrong, and the code they end with."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.logging import RichHandler

from ccp_fast.data import DataFileError
from ccp_fast.training.compare import DIVERGED, STOPPED
from ccp_fast.training.errors import Diverged, UserError
from ccp_fast.training.interrupt import Interrupted
from ccp_fast.training.workers import tells_of_a_lost_worker, worker_lost

WRONG_INPUT = 2


@contextmanager
def one_sentence() -> Iterator[None]:
    """Warnings without decoration; of an error that is the user's to put right its sentence, and exit code 2."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be UTF-8
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(show_time=False, show_path=False)]
    )
    try:
        yield
    except (UserError, DataFileError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(DIVERGED if isinstance(error, Diverged) else WRONG_INPUT) from None
    except RuntimeError as error:
        if not tells_of_a_lost_worker(error):
            raise
        print(worker_lost(error), file=sys.stderr)
        raise typer.Exit(WRONG_INPUT) from None
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        raise typer.Exit(STOPPED) from None
