"""Retrieval of an evaluation set, with the metrics that are reported for it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ccp_fast.data import EvaluationSet, ImageSource
from ccp_fast.evaluation import retrieval
from ccp_fast.functional import Normalize
from ccp_fast.training.config import Config
from ccp_fast.training.export import EmbeddingModel

# The K of Recall@K that publications give for a data set, by its name; for all others 1, 2, 4, 8.
RECALL_AT = {"sop": (1, 10, 100, 1000), "inshop": (1, 10, 20, 30, 40, 50)}


def measure(
    embed: Callable[[ImageSource], Tensor],
    images: EvaluationSet,
    metrics: tuple[str, ...],
    normalize: Normalize,
    ks: tuple[int, ...] = (1, 2, 4, 8),
) -> dict[str, float]:
    """Metrics by name, with distances between vectors as `normalize` makes them.

    embed: all images of a source to [n, dim].
    """
    query, gallery = embed(images.query), images.gallery
    return retrieval(
        query,
        images.query.labels.to(query.device),
        None if gallery is None else embed(gallery),
        None if gallery is None else gallery.labels.to(query.device),
        metrics,
        ks=ks,
        normalize=normalize,
    )


def measure_model(model: EmbeddingModel, images: EvaluationSet, config: Config) -> dict[str, float]:
    """What is reported at the end, of a trained model."""
    return measure(
        model.embed_for_retrieval, images, final_metrics(config), model.retrieval_normalize, recall_at(config)
    )


def final_metrics(config: Config) -> tuple[str, ...]:
    """What is reported on the test classes."""
    usual = ("precision_at_1", "r_precision", "map_at_r", "recall_at_k")
    return (*usual, "nmi") if config.evaluation.nmi else usual


def recall_at(config: Config) -> tuple[int, ...]:
    """The K of Recall@K for the data set."""
    return RECALL_AT.get(config.data.name, (1, 2, 4, 8))
