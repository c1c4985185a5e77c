"""Runs of one network or of several, by one command, and what is reported of them.

held-out       one network, reported at the step that is best on the validation classes.
conventional   one network on all training classes, reported at its last step. No class is held out that could pick
               another, and what is reported picks nothing: what CCP goes by is retrieval among training classes.
reality-check  as many networks as folds of the training classes (4), each trained without its fold and taken at the
               step that is best on it. No number of the test classes exists before all are trained; then
               "separated", the mean over the networks, and "concatenated", their vectors one after the other
               (4 × 128 = 512 dimensions). A metric learning reality check, arXiv 2003.08505, section 4.

With `protocol.networks` the first two train several networks as well, which differ in their seed.

Each of several networks is a run folder of its own, network-0 and so on in that of the whole. Finished ones are
kept and the others gone on with wherever the whole was stopped.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ccp_fast._system import environment
from ccp_fast.training import trainer
from ccp_fast.training.config import with_settings
from ccp_fast.training.datasets import load_parts
from ccp_fast.training.display import Display
from ccp_fast.training.export import load_model
from ccp_fast.training.interrupt import Interrupted
from ccp_fast.training.measure import Tested, concatenated, embedded, final_metrics, measure
from ccp_fast.training.records import Summary
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.settings import Config


def train(
    config: Config, path: Path, display: Display, tested: Callable[[Tested], object] | None = None
) -> Summary:
    """What the configuration's protocol asks for, into a new folder; returns the final numbers.

    tested: as of `trainer.train`; of several networks, of which the report shows curves alone, it hears nothing.

    Raises UserError for a folder that exists or settings that do not fit the data, Interrupted after Ctrl-C.
    """
    if not config.protocol.is_whole:
        return trainer.train(config, path, display, tested)
    config = with_settings(config, threads=config.threads or torch.get_num_threads())
    trainer.checked_splits(_config_of(config, 0))
    whole = RunFolder.create(path, config, environment.describe(config.threads or 1))
    with whole.lock():
        return _train_all(whole, display)


def resume(
    path: Path,
    display: Display,
    wanted: Config | None = None,
    tested: Callable[[Tested], object] | None = None,
) -> Summary:
    """Go on with an interrupted run of one network or several; of a finished one, its numbers. As `trainer.resume`."""
    whole = RunFolder.open(path)
    if not whole.config.protocol.is_whole:
        return trainer.resume(path, display, wanted, tested)
    if wanted is not None:
        whole.move(wanted)
    if whole.summary is not None:
        return whole.summary
    with whole.lock():
        return _train_all(whole, display)


def train_or_resume(
    config: Config, path: Path, display: Display, tested: Callable[[Tested], object] | None = None
) -> Summary:
    """The same command to start a run and to go on with it, also on another machine.

    UserError if what is there has other settings.
    """
    if not (path / "config.yaml").is_file():
        return train(config, path, display, tested)
    return resume(path, display, config, tested)


def _config_of(config: Config, network: int) -> Config:
    """Runs of different seeds have no seed of a network in common."""
    seed = config.seed * config.protocol.count + network
    return with_settings(config, protocol__network=network, seed=seed)


def _train_all(whole: RunFolder, display: Display) -> Summary:
    config, summaries = whole.config, []
    for number, folder in enumerate(whole.networks()):
        display.say(f"network {number + 1} of {config.protocol.count}")
        try:
            summaries.append(train_or_resume(_config_of(config, number), folder, display))
        except Interrupted as stopped:
            raise Interrupted(whole.path, stopped.step) from None
    summary = {**_together(config, summaries), **_test(whole)}
    whole.write_json("summary.json", summary)
    return summary


def _together(config: Config, summaries: list[Summary]) -> Summary:
    """Sums and means over the networks."""
    seconds = [summary["seconds"] for summary in summaries]
    # "saving" is not in the summaries of older networks.
    training, evaluation, saving, cpu = (
        sum(s.get(key, 0.0) for s in seconds) for key in ("training", "evaluation", "saving", "cpu")
    )
    steps = sum(summary["steps"] for summary in summaries)
    return {
        "loss": config.loss.name,
        "method": config.method,
        "seed": config.seed,
        "steps": steps,
        "stopped_early": any(summary.get("stopped_early", False) for summary in summaries),
        "best_step": None,  # each network has its own
        "val": {"map_at_r": _mean(summary["val"]["map_at_r"] for summary in summaries)},
        "networks": [
            {key: summary[key] for key in ("seed", "steps", "best_step", "val", "seconds")}
            for summary in summaries
        ],
        "parameters": sum(summary["parameters"] for summary in summaries),
        "seconds": {
            "training": training,
            "per_step": training / steps,
            "evaluation": evaluation,
            "saving": saving,
            "cpu": cpu,
        },
    }


def _mean(values: Iterable[float | None]) -> float | None:
    """None where there is none: nothing was held out."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _test(whole: RunFolder) -> dict[str, Any]:
    """Metrics of the test classes: of each network, their mean, and of all together."""
    config, each, parts = whole.config, [], []
    test, metrics = load_parts(config.data).test, final_metrics(config)
    for folder in whole.networks():
        model = load_model(folder, config.compute.device)
        vectors = embedded(model.embed_for_retrieval, test)
        each.append(measure(vectors, test, metrics, model.retrieval_normalize, config))
        parts.append(vectors.normalised(model.normalize))
    return {
        "test": measure(concatenated(parts), test, metrics, None, config),
        "separated": {name: statistics.fmean(one[name] for one in each) for name in each[0]},
        "test_of_each": each,
    }
