"""The report over any runs: what they reached, how they went, and in which settings they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from ccp_fast.training.config import known_keys, value_of
from ccp_fast.training.errors import UserError
from ccp_fast.training.files import write_atomically
from ccp_fast.training.methods import title
from ccp_fast.training.metrics import Row, read_rows
from ccp_fast.training.report.page import render
from ccp_fast.training.report.svg import ACCENT, FAINT, SECOND, THIRD, drawing
from ccp_fast.training.run_folder import RunFolder

COLOURS = [ACCENT, SECOND, THIRD, "#b05cc6", "#c9a227", "#c44e52", FAINT]
CURVES = {
    "val_map_at_r": "MAP@R, validation classes",
    "train_map_at_r": "MAP@R, training classes",
    "loss": "Loss",
}
METRICS = {
    "map_at_r": "MAP@R",
    "r_precision": "R-precision",
    "precision_at_1": "P@1",
    "nmi": "NMI",
}


class Line(NamedTuple):
    """A run in the table."""

    name: str
    title: str
    steps: str
    best_step: object
    val: float | None
    test: dict[str, float]
    seconds: float | None


def write_runs_report(paths: Sequence[Path], out: Path, whole: RunFolder | None = None) -> Path:
    """Write one page over runs, finished or not; `whole`: the run that these are the networks of.

    UserError for a path that is no run folder, or the same twice.
    """
    runs = [RunFolder.open(path) for path in paths]
    names = _names(paths)
    lines = [_line(name, run) for name, run in zip(names, runs, strict=True)]
    summary = None if whole is None else whole.summary
    if summary is not None:
        lines = [line._replace(test=test) for line, test in zip(lines, summary["test_of_each"], strict=True)]
    metrics = [name for name in METRICS if any(name in line.test for line in lines)]
    metrics += sorted(
        {name for line in lines for name in line.test if name.startswith("recall_at_")} - {"recall_at_1"},
        key=lambda name: int(name.removeprefix("recall_at_")),
    )
    page = render(
        "runs.html.j2",
        title=f"{len(runs)} runs" if whole is None else title(whole.config),
        lines=lines,
        metrics=[(name, METRICS.get(name, f"R@{name.removeprefix('recall_at_')}")) for name in metrics],
        best={name: max(line.test.get(name, -1.0) for line in lines) for name in metrics},
        protocol=None if whole is None else whole.config.protocol.name,
        together=None
        if summary is None
        else [
            (METRICS[name], summary["separated"][name], summary["test"][name])
            for name in METRICS
            if name in summary["test"]
        ],
        curves=[_curve(key, text, names, runs) for key, text in CURVES.items()],
        names=names,
        differing=_differing(runs),
    )
    write_atomically(out, page)
    return out


def _names(paths: Sequence[Path]) -> list[str]:
    """Of the folders, with those above them where two are alike."""
    resolved = [path.resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise UserError("runs: expected different folders, got one twice")
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(resolved):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in resolved]


def _line(name: str, run: RunFolder) -> Line:
    summary = run.summary
    if summary is None:
        rows = read_rows(run.path / "metrics.jsonl")
        last: Row = rows[-1] if rows else {"step": 0, "val_map_at_r": None}
        held_out = [row for row in rows if row["val_map_at_r"] is not None]
        best = max(held_out, key=lambda row: row["val_map_at_r"], default=last)
        done = last["step"]
        steps = f"{done:,} of {run.config.steps:,}"
        return Line(name, title(run.config), steps, best["step"] or None, best["val_map_at_r"], {}, None)
    return Line(
        name,
        title(run.config),
        f"{summary['steps']:,}",
        summary["best_step"],
        summary["val"]["map_at_r"],
        summary["test"] or {},
        summary["seconds"]["training"],
    )


def _differing(runs: Sequence[RunFolder]) -> list[tuple[str, list[object]]]:
    """Settings that are not the same in all, with the value in each."""
    table = [(key, [value_of(run.config, key) for run in runs]) for key in known_keys()]
    return [(key, values) for key, values in table if any(value != values[0] for value in values)]


def _curve(key: str, text: str, names: Sequence[str], runs: Sequence[RunFolder]) -> Markup:
    with drawing(f"runs-{key.replace('_', '-')}") as d:
        ax = d.axes[0]
        for i, (name, run) in enumerate(zip(names, runs, strict=True)):
            style: Any = ("-", "--", ":", "-.")[i // len(COLOURS) % 4]
            for k, folder in enumerate(run.networks()):
                label = "_" if k else name.lstrip("_")  # matplotlib leaves out what begins with _
                steps, values = _column(read_rows(folder / "metrics.jsonl"), key)
                ax.plot(steps, values, style, color=COLOURS[i % len(COLOURS)], label=label)
        ax.set(title=text, xlabel="step")
        ax.legend(loc="best")
    return d.markup


def _column(rows: Sequence[Row], key: str) -> tuple[list[int], list[float]]:
    """Without steps of which it is not known: of classes held out where there are none."""
    known = [row for row in rows if row[key] is not None]
    return [row["step"] for row in known], [row[key] for row in known]
