"""A GPU's rows as tables on a terminal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from rich.console import Console

from ccp_fast.bench.gpu.ceilings import Rates
from ccp_fast.bench.results import GpuFindings, Measured, Row
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
        "Kernels of ccp_fast; occupancy as estimated from the launch",
        ("case", "pass", "kernel"),
        ("times", "µs", "grid", "block", "registers", "shared KB", "occupancy"),
    )
    for row in rows:
        if row.gpu is None:
            continue
        for name, kernels in (("forward", row.gpu.forward), ("backward", row.gpu.backward)):
            for kernel in kernels:
                shared, occupancy = kernel.shared_bytes, kernel.occupancy
                table.add_row(
                    f"{row.name}, {row.label}",
                    name,
                    short(kernel.name),
                    str(kernel.count),
                    f"{kernel.microseconds:.1f}",
                    " x ".join(map(str, kernel.grid)),
                    " x ".join(map(str, kernel.block)),
                    "-" if kernel.registers is None else str(kernel.registers),
                    "-" if shared is None else f"{shared / 1024:.1f}",
                    "-" if occupancy is None else f"{occupancy:.0f}%",
                )
    out.print(table)


def short(name: str, most: int = 48) -> str:
    """A kernel's name without its arguments and namespaces, cut where it is long."""
    head = name.removeprefix("void ").split("<", 1)[0].split("(", 1)[0].rsplit("::", 1)[-1] or name
    parameters = name[name.index("<") :].split("(", 1)[0] if "<" in name else ""
    text = head + parameters.replace("ccp::", "")
    return text if len(text) <= most else text[: most - 1] + "…"
