"""What tests of image files as input share."""

from __future__ import annotations

from pathlib import Path

import tiny_training

from ccp_fast.data import ImageFiles
from ccp_fast.data.folders import folders
from ccp_fast.training.inputs import NetworkInput
from ccp_fast.training.inputs.files import FilesInput
from ccp_fast.training.settings import Config

COLOUR = NetworkInput(channels=3, size=24, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
SMALL = ["crop.shorter_side=32", "crop.least=12"]


def config_of(tree: Path, *settings: str) -> Config:
    return tiny_training.config(
        "data.name=folders",
        f"data.root={tree}",
        "data.val_share=0.34",
        "data.workers=0",
        "batch.classes=3",
        "evaluation.train_classes=2",
        *SMALL,
        *settings,
    )


def training_images(tree: Path) -> ImageFiles:
    images = folders(tree).train
    assert isinstance(images, ImageFiles)
    return images


def plan(step: int) -> list[int]:
    return [(7 * step + i * i) % 24 for i in range(6)]


def followed(tree: Path, *settings: str) -> FilesInput:
    config = config_of(tree, *settings)
    opened = FilesInput(training_images(tree), config, COLOUR)
    opened.follow(plan)
    return opened
