"""The figures of the guide, made on `glyphs`: `python docs/figures.py` trains what is missing and draws all.

    python docs/figures.py triplet ccp      these alone
    python docs/figures.py --finished       no training: what the folder of runs has
    python docs/figures.py --steps 2000 --runs DIR

The runs are those of `guide_runs.py` with seed 0. A figure is docs/figures/NAME.svg with its caption NAME.md, which
says what it was made from.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from guide_runs import FOLDER as RUN_FOLDER
from guide_runs import RUNS, STEPS, Finished, obtain
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast._system.files import write_atomically
from ccp_fast.data import ImageSource
from ccp_fast.evaluation import retrieval
from ccp_fast.reference.pairs import normalise
from ccp_fast.training.compare import run_in_a_process
from ccp_fast.training.datasets import load_splits
from ccp_fast.training.errors import UserError
from ccp_fast.training.learner import Learner
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.report.svg import ACCENT, FAINT, SECOND, THIRD, drawing
from ccp_fast.training.run_folder import RunFolder

FOLDER = Path(__file__).parent / "figures"
LARGEST = 100_000  # bytes of a figure
BINS = 50


# The first run is the one whose pairs are shown.
FIGURES = {
    "contrastive": ("c2", "c1"),
    "triplet": ("triplet",),
    "multi_similarity": ("multi_similarity",),
    "lifted_structure": ("lifted_structure", "lifted_structure-pair"),
    "proxy_nca": ("proxy_nca", "proxy_nca-100"),
    "proxy_anchor": ("proxy_anchor", "proxy_anchor-100"),
    "soft_triple": ("soft_triple", "soft_triple-100"),
    "margin_softmax": ("arcface", "normface"),
    "ccp": ("c2-ccp", "c2"),
    "alternating_projections": ("c2-alternating", "c2"),
    "intra_batch": ("intra-batch", "c2"),
    "cross_batch_memory": ("c2-xbm", "c2"),
    "k_center": ("c2",),
}


class Pairs(NamedTuple):
    """Shares of the pairs of the test classes by cosine, [BINS] each, from −1 to 1."""

    positive: Tensor
    negative: Tensor
    map_at_r: float


def pairs(learner: Learner, test: ImageSource) -> Pairs:
    """Of every two test images."""
    embeddings = learner.embed(test)
    unit = normalise(embeddings, "unit")
    same = test.labels[:, None] == test.labels
    above = torch.ones_like(same).triu(1)  # each pair once
    cosines = unit @ unit.T
    shares = [torch.histc(cosines[kind & above], BINS, -1, 1) for kind in (same, ~same)]
    found = retrieval(embeddings, test.labels, metrics=("map_at_r",), normalize=learner.method.normalize)
    return Pairs(*(share / share.sum() for share in shares), found["map_at_r"])


def before_and_after(run: RunFolder) -> tuple[Pairs, Pairs]:
    """Of the network as it began, and at the best step."""
    splits = load_splits(run.config)
    learner = Learner(run.config, splits.train)
    before = pairs(learner, splits.test.query)
    learner.load_weights(run.at(best_step(run)).state["learner"])
    return before, pairs(learner, splits.test.query)


def best_step(run: RunFolder) -> int:
    """By MAP@R on the validation classes."""
    assert run.summary is not None
    return int(run.summary["best_step"])


def training(name: str, runs: list[Finished]) -> tuple[str, str]:
    """Figure and caption: the curves of all runs, and the pairs of the first before and after."""
    before, after = before_and_after(runs[0].run)
    with drawing(f"guide-{name}", width=9.6, height=2.7, panels=3) as d:
        curves, *histograms = d.axes
        for one, color in zip(runs, (ACCENT, SECOND, THIRD), strict=False):
            rows = read_rows(one.run.path / "metrics.jsonl")
            steps, values = ([row[key] for row in rows] for key in ("step", "val_map_at_r"))
            best = steps.index(best_step(one.run))
            label = f"{one.title}: {values[best]:.3f}".replace(", ", ",\n")
            curves.plot(steps, values, color=color, label=label)
            curves.plot(steps[best], values[best], "o", color=color, markersize=5)
        curves.set(title="MAP@R, validation classes", xlabel="step", ylim=(0, None))
        curves.legend(loc="lower right")
        edges = torch.linspace(-1, 1, BINS + 1).tolist()
        for ax, when, shown in zip(histograms, ("before", "after"), (before, after), strict=True):
            for share, color, label in (
                (shown.negative, FAINT, "two classes"),
                (shown.positive, ACCENT, "one class"),
            ):
                ax.stairs(share.tolist(), edges, color=color, fill=True, alpha=0.55, label=label)
            ax.set(title=f"Pairs of test classes, {when}", xlabel="cosine", yticks=[])
            ax.legend(loc="upper left")
    first, *others = runs
    also = "".join(f"; {one.title}: `{one.command}`" for one in others)
    caption = (
        "Left: MAP@R on the 200 validation classes, which are not trained on; the best step is marked. Right: cosines "
        f"of all pairs of the 500 test classes, {first.title}, with the untrained network "
        f"(MAP@R {before.map_at_r:.3f}) and at the best step (MAP@R {after.map_at_r:.3f}). One seed. "
        f"`{first.command}`{also}. {made_by(runs)}"
    )
    return str(d.markup), caption


def k_center(name: str, runs: list[Finished]) -> tuple[str, str]:
    """Figure and caption: covering radii of the test classes, by k-center and by chance."""
    (one,) = runs
    splits = load_splits(one.run.config)
    learner = Learner(one.run.config, splits.train)
    learner.load_weights(one.run.at(best_step(one.run)).state["learner"])
    points = normalise(learner.embed(splits.test.query), "unit")
    classes, size = splits.test.num_classes, len(points) // splits.test.num_classes
    points = points.view(classes, size, -1)
    greedy = F.farthest_points(points, size).radii.double().mean(0)
    draws = [covering_radii(points, seed).double().mean(0) for seed in range(20)]
    chance = torch.stack(draws).mean(0)
    with drawing(f"guide-{name}", width=5.4, height=2.9) as d:
        ax, counts = d.axes[0], list(range(1, size + 1))
        ax.plot(counts, chance.tolist(), "o-", color=FAINT, markersize=4, label="at random, mean of 20 draws")
        ax.plot(counts, greedy.tolist(), "o-", color=ACCENT, markersize=4, label="k-center")
        ax.set(title="Covering radius, mean over the classes", xlabel="picks of a class", ylim=(0, None))
        ax.legend(loc="upper right")
    caption = (
        f"The largest distance of one of the {size} images of a class to the nearest pick, mean over the {classes} "
        f"test classes, of embeddings of length 1. `{one.command}`. {made_by(runs)}"
    )
    return str(d.markup), caption


def covering_radii(points: Tensor, seed: int) -> Tensor:
    """[S, n] after each of n picks in a random order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(points.shape[:2], generator=generator).argsort(1)
    distances = torch.cdist(points, points.gather(1, order[:, :, None].expand_as(points)))
    return distances.cummin(2).values.amax(1)  # [S, points, picks]


def made_by(runs: list[Finished]) -> str:
    """The commits of the runs, as their folders say."""
    return "Code of commit " + ", ".join(sorted({one.run.commit for one in runs})) + "."


def write(name: str, runs: list[Finished], folder: Path = FOLDER) -> None:
    """The figure of that name."""
    write_figure(name, *(k_center if name == "k_center" else training)(name, runs), folder)


def write_figure(name: str, svg: str, caption: str, folder: Path = FOLDER) -> None:
    """NAME.svg and NAME.md."""
    if len(svg.encode()) > LARGEST:
        raise UserError(f"{name}.svg: expected at most {LARGEST} bytes, got {len(svg.encode())}")
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{name}.svg", svg + "\n")
    write_atomically(folder / f"{name}.md", caption + "\n")


def main(arguments: list[str] | None = None) -> int:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"some of {', '.join(FIGURES)}; default: all"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of each run, default {STEPS}")
    parser.add_argument("--runs", type=Path, default=RUN_FOLDER, help=f"default {RUN_FOLDER}")
    parser.add_argument("--finished", action="store_true", help="train nothing")
    options: Any = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - FIGURES.keys())
    if unknown:
        parser.error(f"unknown figure {unknown[0]!r}: expected some of {', '.join(FIGURES)}")
    missing = False
    train = None if options.finished else run_in_a_process
    for name in options.names or FIGURES:
        try:
            found = [
                obtain(run, RUNS[run], options.steps, options.runs, train=train) for run in FIGURES[name]
            ]
            runs = [one for one in found if one is not None]
            if len(runs) < len(found):
                print(f"{name}: a run is missing")
                continue
            write(name, runs)
            print(f"{name}: docs/figures/{name}.svg")
        except UserError as error:
            print(f"{name}: {error}", file=sys.stderr)
            missing = True
    return int(missing)


if __name__ == "__main__":
    sys.exit(main())
