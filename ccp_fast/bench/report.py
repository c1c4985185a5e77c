"""Rows as tables on a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console

from ccp_fast.bench.case import Role
from ccp_fast.bench.ceilings import Ceilings
from ccp_fast.bench.machine import Load
from ccp_fast.bench.results import Change, Row, label
from ccp_fast.bench.tables import beside, errors_of, make_table, megabytes, megabytes_of, milliseconds

_RIVALS: tuple[tuple[str, Role], ...] = (("best eager", "eager"), ("peer", "peer"))


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
    others = "".join(f", {name} {rival.ratio:.1f}x" for name, rival in rivals if rival)
    out.print(
        f"{done}/{of} {row.name}, {row.label}: {milliseconds(row.ours.p50_ms)} ms{others}", highlight=False
    )


def show_rows(out: Console, rows: Sequence[Row]) -> None:
    """Two tables, times, then memory and errors, a section for each family; then who could not run."""
    peers = dict.fromkeys(peer.name for row in rows if (peer := row.best("peer")))
    times = make_table(
        f"Milliseconds; in brackets the time over that of ccp_fast. Peer: {', '.join(peers) or 'none'}",
        ("case",),
        (
            "ccp_fast\np20 / p50 / p80",
            "best eager\np50",
            "compiled\np50",
            "peer\np50",
            "floor",
            "floor/\np50",
        ),
    )
    memory = make_table(
        "Peak memory beyond inputs and results, MB; error of value / gradient against float64",
        ("case",),
        (
            "ccp_fast",
            "best eager",
            "compiled",
            "peer",
            "ccp_fast\n/peer",
            "error\nccp_fast",
            "error\neager",
            "error\npeer",
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


def _times(row: Row) -> list[str]:
    ours = row.ours
    return [
        "\n".join(filter(None, (f"{row.name}, {row.setting}", f" {row.shape}", row.note and f" {row.note}"))),
        " / ".join(milliseconds(t) for t in (ours.p20_ms, ours.p50_ms, ours.p80_ms)),
        *(beside(row.best(role)) for role in ("eager", "compiled", "peer")),
        f"{milliseconds(row.floor_ms)}\n{row.floor_from}",
        f"{row.share_of_floor:.0%}",
    ]


def _memory_and_errors(row: Row) -> list[str]:
    eager, compiled, peer = row.best("eager"), row.best("compiled"), row.best("peer")
    share = "-"
    if peer and peer.extra_bytes and row.ours.extra_bytes is not None:
        share = f"{row.ours.extra_bytes / peer.extra_bytes:.1%}"
    memory = [megabytes_of(m) for m in (row.ours, eager, compiled, peer)]
    return [f"{row.name}, {row.setting}", *memory, share, *(errors_of(m) for m in (row.ours, eager, peer))]


def show_aims(out: Console, rows: Iterable[Row]) -> None:
    """Every aim, met or not."""
    table = make_table("Aims", ("case", "setting", "aim", "got", ""), ())
    words = {True: "met", False: "[bold]BELOW[/bold]", None: "not judged"}
    for row in rows:
        for aim in row.aims:
            aimed = _aim(aim["kind"], aim["against"], aim["bound"], aim["got"])
            table.add_row(row.name, row.label, *aimed, words[aim["met"]])
    if table.row_count:
        out.print(table)


def _aim(kind: str, against: str, bound: float, got: float | None) -> tuple[str, str]:
    text, figure = {
        "speed": (f"at least {bound:g}x as fast as {against}", "{:.1f}x"),
        "memory": (f"at most {bound:.0%} of the extra memory of {against}", "{:.1%}"),
        "rate": (f"at least {bound:.0%} of the rate of a {against}", "{:.0%}"),
        "floor": (f"at least {bound:.0%} of the floor", "{:.0%}"),
        "time": (f"at most {bound * 1e3:g} µs", "{:.3g} ms"),
        "launches": (f"at most {bound:g} kernels each way", "{:g}"),
    }[kind]
    return text, "-" if got is None else figure.format(got)


def show_changes(out: Console, changes: Sequence[Change], device: str, before: str) -> None:
    """Ours now against ours then."""
    if device != before:
        out.print(
            f"The older run was made on another device: {before}, this one is {device}.", highlight=False
        )
    table = make_table(
        "Change of ccp_fast since the older run; in brackets: within the spread",
        ("case", "setting"),
        ("before ms", "now ms", "change", "before MB", "now MB"),
    )
    for change in changes:
        percent = f"{change.relative:+.0%}"
        table.add_row(
            change.name,
            label(change.setting, change.precision),
            milliseconds(change.before_ms),
            milliseconds(change.now_ms),
            percent if change.clear else f"({percent})",
            megabytes(change.extra_before),
            megabytes(change.extra_now),
        )
    out.print(table if changes else "No case of the older run has the shape and threads of this one.")


def show_load(out: Console, load: Load) -> None:
    """A warning where it is due."""
    warning = load.warning()
    if warning:
        out.print(f"[bold red]{warning}[/bold red]")
    elif load.share is not None:
        out.print(f"Others took {load.share:.1%} of the cores while times were taken.", highlight=False)
