"""Data sets by name, divided into splits."""

from __future__ import annotations

from collections.abc import Callable

from ccp_fast.data import EvaluationSet, Splits, glyphs
from ccp_fast.training.config import Config, DataConfig


def load_splits(config: Config) -> Splits:
    """What `data.name` stands for."""
    return DATASETS[config.data.name](config.data)


def _glyphs(_: DataConfig) -> Splits:
    return Splits(glyphs("train"), EvaluationSet(glyphs("val")), EvaluationSet(glyphs("test")))


DATASETS: dict[str, Callable[[DataConfig], Splits]] = {"glyphs": _glyphs}
