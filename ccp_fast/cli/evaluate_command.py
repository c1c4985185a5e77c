"""`ccp-train evaluate`: a trained model on the classes of a data set."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ccp_fast._system.files import check_writable, write_atomically
from ccp_fast.cli.errors import one_sentence
from ccp_fast.data import EvaluationSet
from ccp_fast.training.config import load_config
from ccp_fast.training.errors import UserError
from ccp_fast.training.export import load_model
from ccp_fast.training.folds import splits_of
from ccp_fast.training.measure import check_evaluation, measure_model


class Split(str, Enum):
    """Of a data set."""

    train = "train"
    val = "val"
    test = "test"


def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a best.safetensors.")],
    data: Annotated[str | None, typer.Option(help="Data set, if it is another than that of the run.")] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder of that data set, or of the run's where it lies elsewhere now."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="One setting, such as evaluation.nmi=false."),
    ] = None,
    split: Annotated[Split, typer.Option(help="Classes to search among.")] = Split.test,
    device: Annotated[str, typer.Option(help="Device to compute on: cpu, cuda or cuda:1.")] = "cpu",
    step: Annotated[
        int | None,
        typer.Option(
            help="As it was at a step whose checkpoint was kept; by default at the one that is reported."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file to write all numbers to.")] = None,
) -> None:
    """Print retrieval metrics of a trained model. The networks of a run count together."""
    with one_sentence():
        if out is not None:
            check_writable(out)
        model = load_model(run, device, step)
        config = load_config(
            settings=settings or (),
            flags={"data.name": data, "data.root": data_root, "compute.device": device},
            base=model.config,
        )
        check_evaluation(config)
        model.config = config
        if split is not Split.test and len(model.networks) > 1 and config.protocol.name == "reality-check":
            raise UserError(
                f"--split: expected test: the networks have other training classes, got {split.value}"
            )
        images = getattr(splits_of(config), split.value)
        if images is None:
            raise UserError(
                f"--split: expected train or test: under {config.protocol.name} no class was held out, got val"
            )
        images = images if isinstance(images, EvaluationSet) else EvaluationSet(images)
        metrics = measure_model(model, images, config)
        recalls = "  ".join(f"R@{k[10:]} {v:.4f}" for k, v in metrics.items() if k.startswith("recall_at_"))
        print(
            f"{config.data.name}, {split.value}: {shown(metrics)}  ({metrics['num_queries']:.0f} queries)\n{recalls}"
        )
        if out is not None:
            write_atomically(out, json.dumps(metrics, indent=2) + "\n")


def shown(metrics: dict[str, float]) -> str:
    """The main ones in a line."""
    names = {"map_at_r": "MAP@R", "precision_at_1": "P@1", "r_precision": "R-precision", "nmi": "NMI"}
    return "  ".join(f"{title} {metrics[name]:.4f}" for name, title in names.items() if name in metrics)
