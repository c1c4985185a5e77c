"""Retrieval metrics over millions of embeddings: exact, streamed, the same bits on every machine.

``retrieval`` gives the metrics of a whole set, ``retrieval_per_query`` one value a query, ``nearest`` the
ranked neighbours themselves. Nothing here ever holds the matrix of all pairs.
"""

from ._clusters import normalized_mutual_information
from ._metrics import METRICS, retrieval, retrieval_per_query
from ._nearest import Nearest, nearest

__all__ = [
    "METRICS",
    "Nearest",
    "nearest",
    "normalized_mutual_information",
    "retrieval",
    "retrieval_per_query",
]
