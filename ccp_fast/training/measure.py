"""Retrieval of an evaluation set, with the metrics that are reported for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ccp_fast._checks import Normalize
from ccp_fast.data import EvaluationSet, ImageSource, Splits
from ccp_fast.evaluation import retrieval
from ccp_fast.reference.pairs import normalise
from ccp_fast.training.errors import UserError
from ccp_fast.training.export import EmbeddingModel
from ccp_fast.training.settings import Config

# The K of Recall@K that publications give for a data set, by its name; for all others 1, 2, 4, 8.
RECALL_AT = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30, 40, 50)}


class Vectors(NamedTuple):
    """Of an evaluation set: [n, dim] of its queries, and of its gallery if it has one."""

    query: Tensor
    gallery: Tensor | None

    def normalised(self, normalize: Normalize) -> Vectors:
        """As they are compared."""
        return Vectors(
            normalise(self.query, normalize),
            None if self.gallery is None else normalise(self.gallery, normalize),
        )


class Tested(NamedTuple):
    """The test classes as a run has measured them: what its report shows."""

    splits: Splits
    vectors: Vectors
    normalize: Normalize  # how they are compared


def embedded(embed: Callable[[ImageSource], Tensor], images: EvaluationSet) -> Vectors:
    """embed: all images of a source to [n, dim]."""
    return Vectors(embed(images.query), None if images.gallery is None else embed(images.gallery))


def concatenated(parts: Sequence[Vectors]) -> Vectors:
    """Those of several networks, one after the other."""
    galleries = [part.gallery for part in parts if part.gallery is not None]
    return Vectors(
        torch.cat([part.query for part in parts], dim=1), torch.cat(galleries, dim=1) if galleries else None
    )


def measure(
    vectors: Vectors, images: EvaluationSet, metrics: tuple[str, ...], normalize: Normalize, config: Config
) -> dict[str, float]:
    """Metrics by name, with distances between vectors as `normalize` makes them."""
    query, gallery = vectors
    labels = None if images.gallery is None else images.gallery.labels.to(query.device)
    return retrieval(
        query,
        images.query.labels.to(query.device),
        gallery,
        labels,
        metrics,
        ks=recall_at(config),
        normalize=normalize,
        backend=config.evaluation.backend,
        kmeans=config.evaluation.kmeans,
    )


def measure_model(model: EmbeddingModel, images: EvaluationSet, config: Config) -> dict[str, float]:
    """What is reported at the end, of a trained model."""
    vectors = embedded(model.embed_for_retrieval, images)
    return measure(vectors, images, final_metrics(config), model.retrieval_normalize, config)


def check_evaluation(config: Config) -> None:
    """UserError for a way to evaluate that is not there."""
    evaluation = config.evaluation
    if evaluation.backend == "faiss" and config.compute.device != "cpu":
        raise UserError(
            "evaluation.backend: expected ccp_fast with embeddings on a GPU, which faiss searches on the CPU alone, "
            "got 'faiss'"
        )
    for key, value in (("backend", evaluation.backend), ("kmeans", evaluation.kmeans)):
        if value == "faiss" and importlib.util.find_spec("faiss") is None:
            raise UserError(f"evaluation.{key}: faiss is not installed: pip install 'ccp-fast[faiss]'")


def final_metrics(config: Config) -> tuple[str, ...]:
    """What is reported on the test classes."""
    usual = ("precision_at_1", "r_precision", "map_at_r", "recall_at_k")
    return (*usual, "nmi") if config.evaluation.nmi else usual


def recall_at(config: Config) -> tuple[int, ...]:
    """The K of Recall@K for the data set."""
    return RECALL_AT.get(config.data.name, (1, 2, 4, 8))
