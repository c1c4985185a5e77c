"""What a run keeps of each sub-problem."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SubProblem:
    """What was known when a sub-problem began. Distances are between vectors as k-center saw them.

    The covering radius of a class is the largest distance of a point of the pool to the nearest proxy of its
    class; mean and maximum are over the classes in the pool. None: no pool, or no sub-problem before.
    """

    index: int  # k
    step: int  # optimizer steps done before it
    lam: float  # lambda_k
    radius_mean: float | None
    radius_max: float | None
    previous_radius_mean: float | None  # of p*, the best proxies of the sub-problem before, over this pool
    spread: float  # mean distance between two proxies of a class, 0 for K = 1
    previous_spread: float | None  # of p*
    classes_kept: int  # classes that kept their proxies
    milliseconds: float  # of `project`
    pool_milliseconds: float | None = None  # of these until the pool was there; None also in older records
