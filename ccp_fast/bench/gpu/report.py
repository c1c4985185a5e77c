"""A GPU's rows as tables on a terminal."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console

from ccp_fast.bench.gpu.ceilings import Rates
from ccp_fast.bench.launch import parameters_of, stem_of
from ccp_fast.bench.results import GpuFindings, Kernel, KernelChange, Measured, Row
from ccp_fast.bench.tables import beside, errors_of, make_table, megabytes_of, milliseconds

_MOST_CASES = 4  # named beside a reason; more are counted


def show_ceilings(out: Console, rates: Rates) -> None:
    """What floors are made of."""
    products = ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in rates.mm_flops_per_second.items())
    out.print(
        f"ceilings: {rates.bytes_per_second / 1e9:.0f} GB/s read and written by a copy; "
        f"TFLOP/s of torch.mm: {products}",
        highlight=False,
    )


def show_rows(out: Console, rows: Sequence[Row]) -> None:
    """Times, then what else was found, a section for each family; then who did not run, and why."""
    times = make_table(
        "Milliseconds of a busy GPU, cold L2; in brackets the time over that of ccp_fast",
        ("case",),
        ("ccp_fast\np20 / p50 / p80", "CUDA\ngraph", "best eager", "compiled", "best peer", "floor", "floor/\np50"),
    )  # fmt: skip
    other = make_table(
        "Extra memory, MB; error of value / gradient against float64; kernels forward + backward; to issue a step, ms",
        ("case",),
        (
            "ccp_fast\nMB",
            "eager\nMB",
            "peer\nMB",
            "ccp_fast\nerror",
            "eager\nerror",
            "kernels",
            "issue",
            "other bits",
            "graph",
        ),
    )
    for family in dict.fromkeys(row.family for row in rows):
        for row in rows:
            if row.family == family:
                times.add_row(*_times(row))
                other.add_row(*_other(row))
        times.add_section()
        other.add_section()
    out.print(times, other)
    show_paths(out, rows)
    show_reasons(out, rows)


def _times(row: Row) -> list[str]:
    ours, peer = row.ours, row.best("peer")
    graph = row.gpu.graph_ms if row.gpu else None
    return [
        "\n".join(filter(None, (f"{row.name}, {row.label}", f" {row.shape}", row.note and f" {row.note}"))),
        " / ".join(milliseconds(t) for t in (ours.p20_ms, ours.p50_ms, ours.p80_ms)),
        "-" if graph is None else milliseconds(graph),
        *(_named(row.best(role)) for role in ("eager", "compiled")),
        _named(peer),
        f"{milliseconds(row.floor_ms)}\n{row.floor_from}",
        f"{row.share_of_floor:.0%}",
    ]


def _named(measured: Measured | None) -> str:
    return f"{beside(measured)}\n{measured.name}" if measured else "-"


def _other(row: Row) -> list[str]:
    ours, eager, peer = row.ours, row.best("eager"), row.best("peer")
    return [
        f"{row.name}, {row.label}",
        *(megabytes_of(m) for m in (ours, eager, peer)),
        errors_of(ours),
        errors_of(eager),
        *_findings(row.gpu, ours),
    ]


def _findings(found: GpuFindings | None, ours: Measured) -> list[str]:
    issue = "-" if ours.issue_ms is None else milliseconds(ours.issue_ms)
    if found is None:
        return ["-", issue, "-", "-"]
    launches = "-" if found.launches is None else " + ".join(map(str, found.launches))
    graph = found.graph if len(found.graph) < 12 else "no"
    return [launches, issue, f"{found.differing} of {found.runs}", graph]


def show_paths(out: Console, rows: Sequence[Row]) -> None:
    """Ours on another way, beside ours: below 1 it is faster."""
    for row in rows:
        for measured in row.role("path"):
            out.print(
                f"{measured.name}: {row.name} {row.label}: {measured.p50_ms:.4g} ms, {measured.ratio:.2f} of the time "
                "without it",
                highlight=False,
                markup=False,
            )


def show_reasons(out: Console, rows: Sequence[Row]) -> None:
    """Who did not run, each reason once; and whose time is no rival's."""
    cases: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        name = f"{row.name} {row.label}"
        for who, reason in row.failed.items():
            cases[f"{who}: {reason}"].append(name)
        for measured in row.role("coarse"):
            cases[f"{measured.name}: no rival, its errors are those of a lower precision"].append(name)
        if row.gpu and row.gpu.graph.startswith("not captured"):
            cases[f"CUDA graph of ccp_fast: {row.gpu.graph}"].append(name)
    for reason, names in cases.items():
        where = ", ".join(names) if len(names) <= _MOST_CASES else f"{len(names)} cases"
        out.print(f"{reason} ({where})", highlight=False, markup=False)


def show_missing(out: Console, left_out: Mapping[str, str], failures: Mapping[str, str]) -> None:
    """Cases without a row."""
    for title, cases in (("left out", left_out), ("FAILED", failures)):
        for case, reason in cases.items():
            out.print(f"{title}: {case}: {reason}", highlight=False, markup=False)


def show_kernels(out: Console, rows: Sequence[Row]) -> None:
    """Each kernel of ours by itself."""
    table = make_table(
        "Kernels of ccp_fast, each pass after a cold L2; GB/s and TFLOP/s of the work that its floor counts",
        ("case, pass\nkernel\ntile",),
        (
            "times",
            "µs, p50\np20 – p80",
            "floor, µs\n/p50",
            "GB/s\nTFLOP/s",
            "grid\nblock",
            "registers\nshared KB",
            "resident\noccupancy",
        ),
    )
    for row in rows:
        if row.gpu is None:
            continue
        for name, kernels in (("forward", row.gpu.forward), ("backward", row.gpu.backward)):
            for kernel in kernels:
                table.add_row(*_kernel(f"{row.name}, {row.label}, {name}", kernel))
    out.print(table)


def _kernel(where: str, kernel: Kernel) -> list[str]:
    def known(value: float | None, form: str) -> str:
        return "-" if value is None else form.format(value)

    def size(extent: Sequence[int]) -> str:
        return " x ".join(map(str, _without_ones(extent))) or "-"

    shared = None if kernel.shared_bytes is None else kernel.shared_bytes / 1024
    share = None if kernel.floor_us is None or not kernel.p50_us else kernel.floor_us / kernel.p50_us
    return [
        f"{where}\n {short(kernel.name)}\n {kernel.tile or ''}".rstrip(),
        str(kernel.count),
        f"{kernel.p50_us:.1f}\n{kernel.p20_us:.1f} – {kernel.p80_us:.1f}",
        f"{known(kernel.floor_us, '{:.2f}')}\n{known(share, '{:.0%}')} {kernel.floor_from or ''}".rstrip(),
        f"{known(kernel.gigabytes_per_second, '{:.0f}')}\n{known(kernel.teraflops_per_second, '{:.3g}')}",
        f"{size(kernel.grid)}\n{size(kernel.block)}",
        f"{known(kernel.registers, '{}')}\n{known(shared, '{:.1f}')}",
        f"{known(kernel.resident_blocks, '{}')}\n{known(kernel.occupancy, '{:.0f}%')}",
    ]


def _without_ones(extent: Sequence[int]) -> list[int]:
    """A grid's extent without the trailing ones."""
    kept = list(extent)
    while len(kept) > 1 and kept[-1] == 1:
        kept.pop()
    return kept


def show_kernel_changes(out: Console, changes: Sequence[KernelChange]) -> None:
    """Kernels now against kernels then."""
    if not changes:
        return
    table = make_table(
        "Change of kernels since the older run; in brackets: within the spread",
        ("case", "pass", "kernel"),
        ("before µs", "now µs", "change"),
    )
    for change in changes:
        percent = f"{change.relative:+.0%}"
        table.add_row(
            change.case,
            change.part,
            short(change.name),
            f"{change.before_us:.1f}",
            f"{change.now_us:.1f}",
            percent if change.clear else f"({percent})",
        )
    out.print(table)


def short(name: str, most: int = 40) -> str:
    """A kernel's name without its arguments and namespaces, cut where it is long."""
    text = stem_of(name) + re.sub(r"\w+::|\(anonymous namespace\)::", "", parameters_of(name))
    return text if len(text) <= most else text[: most - 1] + "…"
