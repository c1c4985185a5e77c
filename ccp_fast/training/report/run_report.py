"""The report of one run, made from its folder alone, or behind it without embedding the test classes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ccp_fast._system.files import write_atomically
from ccp_fast.training.clock import PHASES
from ccp_fast.training.config import known_keys, value_of
from ccp_fast.training.errors import UserError
from ccp_fast.training.export import load_model
from ccp_fast.training.folds import splits_of
from ccp_fast.training.measure import Tested, embedded
from ccp_fast.training.methods import title
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.report import figures
from ccp_fast.training.report.gallery import make_gallery
from ccp_fast.training.report.map import GLYPH, HEIGHT, WIDTH, make_map
from ccp_fast.training.report.page import render
from ccp_fast.training.report.runs_report import write_runs_report
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.settings import Config

_PHASE_TITLES = {
    "data": "batches and augmentation",
    "forward": "forward",
    "loss": "loss, forward",
    "backward": "backward, of network and loss",
    "projection": "projection",
    "optimizer": "optimizer",
    "reinitialisation": "choosing proxies or classes",
    "evaluation": "evaluation",
    "saving": "saving checkpoints",
}


class Setting(NamedTuple):
    """A row of the table of settings."""

    key: str
    value: object
    is_default: bool


class Share(NamedTuple):
    """A part of the time."""

    title: str
    percent: float
    seconds: float


def write_run_report(run: RunFolder, tested: Tested | None = None) -> Path:
    """Write report.html and return its path: of several networks a comparison of them.

    tested: the test classes as the run has just measured them; None: they are embedded again.

    UserError for a run that is not finished, or is one of several.
    """
    summary = run.summary
    if summary is None:
        raise UserError(f"{run.path} is not finished: go on with ccp-train --resume {run.path}")
    if run.config.protocol.network is not None:
        raise UserError(f"{run.path} is one of several networks: {run.path.parent} has the report")
    if run.config.protocol.is_whole:
        return write_runs_report(run.networks(), run.path / "report.html", whole=run)
    splits, vectors, normalize = tested or _embedded_again(run)
    rows, subproblems = read_rows(run.path / "metrics.jsonl"), read_rows(run.path / "subproblems.jsonl")
    curves = [
        figures.retrieval_curve(rows, subproblems, summary["best_step"]),
        figures.loss_curve(rows, subproblems),
        figures.radius_curve(subproblems),
        figures.spread_curve(rows, subproblems),
    ]
    page = render(
        "run.html.j2",
        title=title(run.config),
        name=run.path.name,
        summary=summary,
        config=run.config,
        counts={
            "train": splits.train.num_classes,
            "val": 0 if splits.val is None else splits.val.num_classes,
            "test": splits.test.num_classes,
        },
        searched=len(splits.test.searched),
        curves=[curve for curve in curves if curve],
        gallery=make_gallery(vectors, splits.test, normalize),
        marks=make_map(vectors.query, splits.test.query),
        map_size=(WIDTH, HEIGHT, GLYPH),
        shares=_shares(summary["seconds"]),
        settings=_settings(run.config),
        environment=run.read_json("environment.json"),
    )
    path = run.path / "report.html"
    write_atomically(path, page)
    return path


def _embedded_again(run: RunFolder) -> Tested:
    splits = splits_of(run.config)
    model = load_model(run.path, run.config.compute.device)
    return Tested(splits, embedded(model.embed_for_retrieval, splits.test), model.retrieval_normalize)


def _shares(seconds: dict[str, Any]) -> list[Share]:
    """The phases that took any; runs from before saving had its own have no share of it."""
    total = sum(seconds.get(part, 0.0) for part in ("training", "evaluation", "saving"))
    shares = {phase: seconds["shares"].get(phase, 0.0) for phase in PHASES}
    return [
        Share(_PHASE_TITLES[phase], 100 * share, total * share)
        for phase, share in shares.items()
        if share > 0
    ]


def _settings(config: Config) -> list[Setting]:
    default = Config()
    return [
        Setting(key, value_of(config, key), value_of(config, key) == value_of(default, key))
        for key in known_keys()
    ]
