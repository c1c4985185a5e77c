"""A data set and settings so small that a run takes a second. As a script: `ccp-train` with them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import torch

from ccp_fast.cli.train_command import app
from ccp_fast.data import ImageSet
from ccp_fast.training import datasets
from ccp_fast.training.config import load_config
from ccp_fast.training.learner import Learner
from ccp_fast.training.settings import Config

PER_CLASS = 6
CLASSES = {"train": 12, "val": 9, "test": 10}

SETTINGS = [
    "threads=1",
    "steps=24",
    "model.widths=[4, 4, 4, 8]",
    "model.dim=8",
    "batch.classes=4",
    "batch.samples=2",
    "ccp.proxies_per_class=2",
    "ccp.pool_size=4",
    "ccp.project_every=5",
    "ccp.warm_start=0.25",
    "evaluation.every=4",
    "evaluation.train_classes=6",
]


def config(*settings: str) -> Config:
    """The tiny settings and some more."""
    return load_config(settings=[*SETTINGS, *settings])


def images(split: str) -> ImageSet:
    """Sixteen random squares per class under noise: what `glyphs` is replaced with."""
    count = CLASSES[split]
    generator = torch.Generator().manual_seed(len(split))
    squares = torch.rand(count, 1, 1, 4, 4, generator=generator)
    patterns = squares.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    noise = torch.rand(count, PER_CLASS, 1, 32, 32, generator=generator)
    pixels = ((0.3 * patterns + 0.7 * noise) * 255).to(torch.uint8).flatten(0, 1)
    return ImageSet(
        images=pixels,
        labels=torch.arange(count).repeat_interleave(PER_CLASS),
        class_names=tuple(f"{split} <{i}>" for i in range(count)),
        sources=("one", "two"),
        source_ids=torch.arange(len(pixels)) % 2,
    )


def hang_at(step: int) -> None:
    """From now on a run that gets to this step leaves a file `hanging` and waits to be killed."""
    real = Learner.train_step

    def train_step(learner: Learner) -> float:
        if learner.step == step:
            Path(sys.argv[sys.argv.index("--out") + 1], "hanging").touch()
            time.sleep(600)
        return real(learner)

    Learner.train_step = train_step  # type: ignore[method-assign]


if __name__ == "__main__":
    datasets.glyphs = images  # type: ignore[assignment]
    if "TINY_TRAINING_HANGS_AT" in os.environ:
        hang_at(int(os.environ["TINY_TRAINING_HANGS_AT"]))
    app()
