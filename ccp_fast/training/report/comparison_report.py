"""The report of a comparison: the table, every seed as a dot, the curves."""

from __future__ import annotations

import statistics
from itertools import cycle, product
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes

from ccp_fast._system.files import write_atomically
from ccp_fast.training.compare import COLUMNS, Cell, Experiment, spread
from ccp_fast.training.metrics import Row, read_rows
from ccp_fast.training.monitor import monitored
from ccp_fast.training.objective import PRESETS
from ccp_fast.training.paired import CONFIDENCE
from ccp_fast.training.report.page import render
from ccp_fast.training.report.svg import ACCENT, FAINT, SECOND, THIRD, drawing
from ccp_fast.training.run_folder import RunFolder

_COLOURS = [FAINT, THIRD, "#b05cc6", ACCENT, "#c9a227", SECOND, "#c44e52"]


class Line(NamedTuple):
    """A row of a table: a loss and a text per column."""

    title: str
    texts: list[str]
    best: int | None  # the column of highest mean


def write_comparison_report(experiment: Experiment) -> Path:
    """Write report.html into the comparison's folder and return its path."""
    page = render(
        "comparison.html.j2",
        name=experiment.path.name,
        config=experiment.base,
        seeds=experiment.seeds,
        titles=[COLUMNS[name].title for name in experiment.columns],
        metrics=[
            ("MAP@R", _lines(experiment, "test_map_at_r", 3)),
            *_gains(experiment),
            ("P@1", _lines(experiment, "test_precision_at_1", 3)),
            (experiment.time.title, _lines(experiment, experiment.time.row, 0, lower_is_better=True)),
        ],
        dots=_dots(experiment),
        curves=[_curves(experiment, loss) for loss in experiment.losses],
        rows=experiment.rows(),
    )
    path = experiment.path / "report.html"
    write_atomically(path, page)
    return path


def _lines(experiment: Experiment, key: str, digits: int, *, lower_is_better: bool = False) -> list[Line]:
    lines = []
    for loss, by_column in experiment.table(key).items():
        means = [statistics.fmean(v.values()) if v else float("-inf") for v in by_column.values()]
        best = None if lower_is_better or len(means) < 2 else means.index(max(means))
        lines.append(
            Line(PRESETS[loss].title, [spread(v.values(), digits) for v in by_column.values()], best)
        )
    return lines


def _gains(experiment: Experiment) -> list[tuple[str, list[Line]]]:
    """The table of differences to the first column, with a blank in its place; none for a single seed or column."""
    lines = [
        Line(PRESETS[loss].title, ["", *(str(gain or "–") for gain in by_column.values())], None)
        for loss, by_column in experiment.differences().items()
        if any(by_column.values())
    ]
    title = COLUMNS[experiment.columns[0]].title
    return (
        [(f"MAP@R, difference to {title}, {CONFIDENCE:.0%} interval, paired by seed", lines)] if lines else []
    )


def _dots(experiment: Experiment) -> Markup:
    """A dot per seed, a bar at the mean."""
    table = experiment.table()
    with drawing("dots", width=max(9.0, 3.0 * len(table)), height=3.4, panels=len(table)) as d:
        for ax, (loss, by_column) in zip(d.axes, table.items(), strict=True):
            for x, (over_seeds, colour) in enumerate(zip(by_column.values(), cycle(_COLOURS))):
                if values := list(over_seeds.values()):
                    ax.plot(
                        [x] * len(values),
                        values,
                        "o",
                        color=colour,
                        markersize=6,
                        alpha=0.75,
                        markeredgewidth=0,
                    )
                    ax.plot([x - 0.3, x + 0.3], [statistics.fmean(values)] * 2, color=colour, linewidth=2.5)
            titles = [COLUMNS[name].title for name in by_column]
            ax.set_xticks(
                range(len(titles)), titles, rotation=35, ha="right", rotation_mode="anchor", fontsize=8
            )
            ax.set_xlim(-0.6, len(titles) - 0.4)
            ax.set_title(PRESETS[loss].name)
            ax.grid(visible=False, axis="x")
    return d.markup


def _curves(experiment: Experiment, loss: str) -> Markup:
    """MAP@R on the classes that are monitored over the steps, the mean over the seeds and their range."""
    with drawing(f"curves-{loss}") as d:
        draw_curves(d.axes[0], experiment, loss)
        if d.axes[0].lines:
            d.axes[0].legend(loc="lower right")
    return d.markup


def draw_curves(ax: Axes, experiment: Experiment, loss: str) -> None:
    """A line per column, in a band from the lowest seed to the highest."""
    styles = product(("-", "--"), _COLOURS)
    for name, (line, colour) in zip(experiment.columns, styles, strict=False):
        cells = [experiment.folder(Cell(loss, name, seed)) for seed in experiment.seeds]
        folders = [f for cell in cells if cell.exists() for f in RunFolder.open(cell).networks()]
        runs = [rows for folder in folders if (rows := read_rows(folder / "metrics.jsonl"))]
        if runs:
            steps, values = _aligned(runs)
            means = [statistics.fmean(v) for v in values]
            ax.plot(steps, means, line, color=colour, label=COLUMNS[name].title)
            ax.fill_between(
                steps,
                [min(v) for v in values],
                [max(v) for v in values],
                color=colour,
                alpha=0.15,
                linewidth=0,
            )
    ax.set(title=PRESETS[loss].title, xlabel="step")


def _aligned(runs: list[list[Row]]) -> tuple[list[int], list[list[float]]]:
    """The steps that all seeds have, and the values of the seeds at each."""
    by_step = [{row["step"]: monitored(row) for row in rows} for rows in runs]
    steps = sorted(set.intersection(*(set(values) for values in by_step)))
    return steps, [[values[step] for values in by_step] for step in steps]
