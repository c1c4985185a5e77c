"""Tables on a terminal, and what their cells say."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from ccp_fast.bench.results import Measured

WIDTH = 140  # of tables that go to a file or a narrow terminal


def console() -> Console:
    """Wide enough for the tables."""
    found = Console()
    return found if found.width >= WIDTH else Console(width=WIDTH)


def make_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """Columns of words, then columns of figures."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def milliseconds(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def beside(measured: Measured | None) -> str:
    """A median, and in brackets how many times that of ours it is."""
    return f"{milliseconds(measured.p50_ms)} ({measured.ratio:.1f}x)" if measured else "-"


def megabytes_of(measured: Measured | None) -> str:
    """Extra memory."""
    return megabytes(measured.extra_bytes) if measured else "-"


def megabytes(value: int | None) -> str:
    """Of bytes."""
    return "-" if value is None else f"{value / 1e6:.1f}"


def errors_of(measured: Measured | None) -> str:
    """Of the value / of the gradients."""
    if measured is None or measured.value_error is None:
        return "-"
    value = f"{measured.value_error:.0e}"
    return value if measured.gradient_error is None else f"{value} / {measured.gradient_error:.0e}"
