"""Rows as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from ccp_fast.bench.case import Role
from ccp_fast.bench.ceilings import Ceilings
from ccp_fast.bench.machine import Load
from ccp_fast.bench.results import Change, Measured, Row

WIDTH = 140  # of tables that go to a file or a narrow terminal


_RIVALS: tuple[tuple[str, Role], ...] = (("best eager", "eager"), ("PML", "peer"))


def console() -> Console:
    """Wide enough for the tables."""
    found = Console()
    return found if found.width >= WIDTH else Console(width=WIDTH)


def show_ceilings(out: Console, ceilings: Ceilings) -> None:
    """What floors are made of."""
    out.print(
        f"ceilings: {ceilings.bytes_per_second / 1e9:.1f} GB/s read and written ({ceilings.bytes_how}); "
        f"{ceilings.flops_per_second / 1e9:.0f} GFLOP/s float32 ({ceilings.flops_how})",
        highlight=False,
    )


def show_progress(out: Console, row: Row, done: int, of: int) -> None:
    """One line when a case is finished."""
    rivals = ((name, row.best(role)) for name, role in _RIVALS)
    beside = "".join(f", {name} {rival.ratio:.1f}x" for name, rival in rivals if rival)
    out.print(f"{done}/{of} {row.name}, {row.setting}: {_ms(row.ours.p50_ms)} ms{beside}", highlight=False)


def show_rows(out: Console, rows: Sequence[Row]) -> None:
    """Two tables, times, then memory and errors, a section for each family; then who could not run."""
    times = _table(
        "Milliseconds; in brackets the time over that of ccp_fast. PML: pytorch-metric-learning",
        ("case",),
        ("ccp_fast\np20 / p50 / p80", "best eager\np50", "compiled\np50", "PML\np50", "floor", "floor/\np50"),
    )
    memory = _table(
        "Peak memory beyond inputs and results, MB; error of value / gradient against float64",
        ("case",),
        (
            "ccp_fast",
            "best eager",
            "compiled",
            "PML",
            "ccp_fast\n/PML",
            "error\nccp_fast",
            "error\neager",
            "error\nPML",
        ),
    )
    for family in dict.fromkeys(row.family for row in rows):
        for row in rows:
            if row.family == family:
                times.add_row(*_times(row))
                memory.add_row(*_memory_and_errors(row))
        times.add_section()
        memory.add_section()
    out.print(times, memory)
    for row in rows:
        for name, reason in row.failed.items():
            out.print(f"{row.name} {row.setting}: {name}: {reason}", highlight=False, markup=False)


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in left:
        table.add_column(name, no_wrap=True)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _times(row: Row) -> list[str]:
    ours = row.ours
    return [
        "\n".join(filter(None, (f"{row.name}, {row.setting}", f" {row.shape}", row.note and f" {row.note}"))),
        " / ".join(_ms(t) for t in (ours.p20_ms, ours.p50_ms, ours.p80_ms)),
        *(_beside(row.best(role)) for role in ("eager", "compiled", "peer")),
        f"{_ms(row.floor_ms)}\n{row.floor_from}",
        f"{row.share_of_floor:.0%}",
    ]


def _memory_and_errors(row: Row) -> list[str]:
    eager, compiled, peer = row.best("eager"), row.best("compiled"), row.best("peer")
    share = "-"
    if peer and peer.extra_bytes and row.ours.extra_bytes is not None:
        share = f"{row.ours.extra_bytes / peer.extra_bytes:.1%}"
    memory = [_mb(m) for m in (row.ours, eager, compiled, peer)]
    return [f"{row.name}, {row.setting}", *memory, share, *(_error(m) for m in (row.ours, eager, peer))]


def show_aims(out: Console, rows: Iterable[Row]) -> None:
    """Every aim, met or not."""
    table = _table("Aims", ("case", "setting", "aim", "got", ""), ())
    for row in rows:
        for aim in row.aims:
            table.add_row(row.name, row.setting, *_aim(aim["kind"], aim["against"], aim["bound"], aim["got"]),
                          "met" if aim["met"] else "[bold]BELOW[/bold]")  # fmt: skip
    if table.row_count:
        out.print(table)


def _aim(kind: str, against: str, bound: float, got: float) -> tuple[str, str]:
    if kind == "speed":
        return f"at least {bound:g}x as fast as {against}", f"{got:.1f}x"
    if kind == "memory":
        return f"at most {bound:.0%} of the extra memory of {against}", f"{got:.1%}"
    return f"at least {bound:.0%} of the rate of a {against}", f"{got:.0%}"


def show_changes(out: Console, changes: Sequence[Change], device: str, before: str) -> None:
    """Ours now against ours then."""
    if device != before:
        out.print(
            f"The older run was made on another device: {before}, this one is {device}.", highlight=False
        )
    table = _table(
        "Change of ccp_fast since the older run; in brackets: within the spread",
        ("case", "setting"),
        ("before ms", "now ms", "change", "before MB", "now MB"),
    )
    for change in changes:
        percent = f"{change.relative:+.0%}"
        table.add_row(
            change.name,
            change.setting,
            _ms(change.before_ms),
            _ms(change.now_ms),
            percent if change.clear else f"({percent})",
            _bytes(change.extra_before),
            _bytes(change.extra_now),
        )
    out.print(table if changes else "No case of the older run has the shape and threads of this one.")


def show_load(out: Console, load: Load) -> None:
    """A warning where it is due."""
    warning = load.warning()
    if warning:
        out.print(f"[bold red]{warning}[/bold red]")
    elif load.share is not None:
        out.print(f"Others took {load.share:.1%} of the cores while times were taken.", highlight=False)


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _beside(measured: Measured | None) -> str:
    return f"{_ms(measured.p50_ms)} ({measured.ratio:.1f}x)" if measured else "-"


def _mb(measured: Measured | None) -> str:
    return _bytes(measured.extra_bytes) if measured else "-"


def _bytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.1f}"


def _error(measured: Measured | None) -> str:
    if measured is None or measured.value_error is None:
        return "-"
    value = f"{measured.value_error:.0e}"
    return value if measured.gradient_error is None else f"{value} / {measured.gradient_error:.0e}"
