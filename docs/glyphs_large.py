"""CCP at the size of Stanford Online Products: four losses on `glyphs-large`, the table and its figures.

    python docs/glyphs_large.py --data-root DIR --jobs 2   trains what is missing; DIR of `ccp-data build glyphs-large`
    python docs/glyphs_large.py --data-root DIR --finished no training: what the folder of runs has

A comparison as `ccp-train --compare` makes it, one thread a run, then `tuned_rivals.py`. A row per run goes to
benchmarks/results/glyphs_large_cells.csv and glyphs_large_tuned.csv, the tables into docs/results.md, between their
marks, and two figures to docs/figures/: curves, and what proxies and embeddings cover.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from figures import write_figure
from marked import put_into
from tuned_rivals import TunedRivals

import ccp_fast.functional as F
from ccp_fast._system.files import write_atomically
from ccp_fast.data import ImageSource
from ccp_fast.training import load_model
from ccp_fast.training.compare import COLUMNS as KNOWN
from ccp_fast.training.compare import Cell, Experiment, run_in_a_process
from ccp_fast.training.config import load_config
from ccp_fast.training.datasets import load_splits
from ccp_fast.training.errors import UserError
from ccp_fast.training.metrics import read_rows, to_csv
from ccp_fast.training.objective import PRESETS
from ccp_fast.training.paired import paired
from ccp_fast.training.report.comparison_report import draw_curves
from ccp_fast.training.report.svg import ACCENT, FAINT, drawing

ROOT = Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "glyphs_large_cells.csv"
TUNED_ROWS = ROWS.with_name("glyphs_large_tuned.csv")
PAGE = ROOT / "docs" / "results.md"

LOSSES = ("c1", "c2", "multi_similarity", "triplet")
COLUMNS = ("plain", "proxies", "reinit", "ccp", "xbm", "plain-32x4", "ccp-32x4", "plain-time")
RIVALS = {  # of CCP, each against the CCP of its batch size
    "plain-time": "ccp",
    "proxies": "ccp",
    "reinit": "ccp",
    "xbm": "ccp",
    "plain-32x4": "ccp-32x4",
}
DRAWN = ("plain", "proxies", "reinit", "ccp")  # curves of one batch size and budget
SEEDS = (0, 1, 2)
SETTINGS = (
    "data.name=glyphs-large",
    "steps=4000",
    "threads=1",
    "ccp.project_every=500",  # a class is in a batch about once in that time
    "evaluation.every=200",
    "evaluation.nmi=false",  # k-means with 10,451 centres takes longer than the training
)
PICKS = 4  # K of the runs


def experiment(root: Path, folder: Path, columns: Sequence[str] = COLUMNS) -> Experiment:
    """All cells, finished or not."""
    base = load_config(settings=SETTINGS, flags={"data.root": root.resolve()})
    return Experiment(folder, base, LOSSES, columns, SEEDS)


def finished_columns(cells: Experiment) -> list[str]:
    """Those that have a finished run."""
    found = {row["column"] for row in cells.rows()}
    if not found:
        raise UserError(f"{cells.path}: no finished run")
    return [name for name in cells.columns if name in found]


def rivals_table(cells: Experiment) -> str:
    """What CCP has over each rival, paired by seed."""
    found = {rival: ccp for rival, ccp in RIVALS.items() if {rival, ccp} <= set(cells.columns)}
    head = ["MAP@R, full CCP less", *(KNOWN[rival].title for rival in found)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for loss, by_column in cells.table().items():
        gains = (paired(by_column[rival], by_column[ccp]) for rival, ccp in found.items())
        lines.append(f"| {PRESETS[loss].title} | {' | '.join(str(gain or '–') for gain in gains)} |")
    return "\n".join(lines) + "\n"


class Coverage(NamedTuple):
    """Of the test classes, means over them; distances as the loss sees them."""

    radii: list[float]  # the largest distance of an image of a class to the nearest of 1 to PICKS picks
    other: float  # the distance of an image to the nearest of another class

    @property
    def ratio(self) -> float:
        """Of the last radius to that distance; infinite for a network that gives all images one point."""
        return self.radii[-1] / self.other if self.other else math.inf


def coverage(run: Path, test: ImageSource) -> Coverage:
    """By the picks of k-center, with the network of a run."""
    model = load_model(run)
    order = torch.as_tensor(test.labels).argsort(stable=True)
    labels = torch.as_tensor(test.labels)[order]
    points = model.embed(test)[order]
    sizes = labels.bincount()
    offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    radii = F.farthest_points(points, PICKS, offsets=offsets).radii.double().mean(0)
    # As many neighbours as the largest class has images: one of them at least is of another class.
    near = F.nearest_references(points, None, int(sizes.max()))
    others = near.distances.masked_fill(labels[near.indices] == labels[:, None], torch.inf)
    return Coverage(radii.tolist(), float(others.amin(1).double().mean()))


def draw_curves_of_all(cells: Experiment) -> tuple[str, str]:
    """Figure and caption."""
    with drawing("guide-glyphs_large_curves", width=11, height=2.9, panels=len(cells.losses)) as d:
        for ax, loss in zip(d.axes, cells.losses, strict=True):
            draw_curves(ax, cells, loss)
            ax.set(title=PRESETS[loss].name)
        d.axes[-1].legend(loc="lower right", fontsize=7)
    return str(d.markup), "MAP@R on the validation classes: mean and range over the seeds that are finished."


def draw_coverage(cells: Experiment) -> tuple[str, str]:
    """Figure and caption."""
    test = load_splits(cells.base).test.query
    said = []
    with drawing("guide-glyphs_large_coverage", width=11, height=2.9, panels=len(cells.losses)) as d:
        for ax, loss in zip(d.axes, cells.losses, strict=True):
            title = PRESETS[loss].name
            parts = []
            for name, color in (("plain", FAINT), ("ccp", ACCENT)):
                cell = Cell(loss, name, cells.seeds[0])
                if cells.summary(cell) is None:
                    continue
                found = coverage(cells.folder(cell), test)
                ax.plot(range(1, PICKS + 1), found.radii, "o-", color=color, markersize=4, label=name)
                ax.axhline(found.other, color=color, linestyle=":")
                parts.append(f"{name} {found.ratio:.2f}")
            if parts:
                said.append(f"{title} {', '.join(parts)}")
            ax.set(title=title, xlabel="picks of a class", ylim=(0, None), xticks=range(1, PICKS + 1))
        d.axes[0].legend(loc="lower left")
    caption = (
        "Test classes, seed 0: the radius of a class around 1 to 4 of its images as k-center picks them, mean over the "
        "classes; dotted: the distance of an image to the nearest of another class. "
        f"Radius of four picks over that distance: {'; '.join(said)}."
    )
    return str(d.markup), caption


def radii_table(cells: Experiment) -> str:
    """What the proxies of a class cover, before and after each choice, mean over the seeds."""
    lines = []
    for loss in cells.losses:
        runs = [read_rows(cells.folder(Cell(loss, "ccp", s)) / "subproblems.jsonl") for s in cells.seeds]
        for chosen in zip(*(run for run in runs if run), strict=True):
            before, after, apart = (
                fmean(row[key] for row in chosen) if chosen[0][key] is not None else None
                for key in ("previous_radius_mean", "radius_mean", "spread")
            )
            texts = ("–" if value is None else f"{value:.3f}" for value in (before, after, apart))
            lines.append(f"| {PRESETS[loss].title} | {chosen[0]['step']} | {' | '.join(texts)} |")
    head = "| | step | radius, proxies as trained | radius, chosen anew | distance of two new proxies |"
    return "\n".join([head, "|---|---|---|---|---|", *lines]) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path, required=True, help="of glyphs-large")
    parser.add_argument("--runs", type=Path, default=Path("runs/glyphs-large"))
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, default 1")
    parser.add_argument("--finished", action="store_true", help="train nothing")
    options: Any = parser.parse_args(arguments)
    try:
        cells = experiment(options.data_root, options.runs)
        if not options.finished:
            cells.run(run_in_a_process, options.jobs, print)
            TunedRivals(cells).run(run_in_a_process, options.jobs, print)
        cells = experiment(options.data_root, options.runs, finished_columns(cells))
        write_atomically(ROWS, to_csv(cells.rows()))
        put_into(
            PAGE,
            "glyphs-large tables",
            f"{cells.markdown()}\n{rivals_table(cells)}\n{radii_table(cells)}",
        )
        tuned = TunedRivals(cells)
        write_atomically(TUNED_ROWS, to_csv(tuned.rows()))
        put_into(PAGE, "tuned tables", tuned.markdown())
        drawn = experiment(options.data_root, options.runs, [name for name in DRAWN if name in cells.columns])
        write_figure("glyphs_large_curves", *draw_curves_of_all(drawn))
        write_figure("glyphs_large_coverage", *draw_coverage(cells))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
