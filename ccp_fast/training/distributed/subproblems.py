"""What is known of CCP's proxies, each rank knowing that of its own classes, over all of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ccp_fast.alternating.choice import spread
from ccp_fast.ccp import AlternatingProjections, SubProblem
from ccp_fast.distributed.communication import Communicator

_MEANS = ("radius_mean", "previous_radius_mean", "spread", "previous_spread")  # over classes
_LARGEST = ("radius_max", "milliseconds", "pool_milliseconds")


def of_all_classes(record: SubProblem, classes: int, comm: Communicator) -> SubProblem:
    """The record of one process with all classes, from that of each rank's own; times are those of the slowest rank.

    What a rank does not know, for want of a pool or a sub-problem before, none does.
    """
    numbers = [getattr(record, name) for name in (*_MEANS, *_LARGEST, "classes_kept")]
    mine = torch.tensor([classes, *(math.nan if x is None else x for x in numbers)], dtype=torch.float64)
    every = comm.gather(mine, "sub-problem")
    weights, values = every[:, 0], every[:, 1:]
    mean, largest = _weighted(values, weights), values.amax(0)
    combined = dict(zip(_MEANS, mean[: len(_MEANS)], strict=True))
    combined |= dict(zip(_LARGEST, largest[len(_MEANS) : -1], strict=True))
    known: dict[str, Any] = {name: float(x) for name, x in combined.items() if not x.isnan()}
    return replace(record, **known, classes_kept=int(values[:, -1].sum()))


def spread_over_all(ccp: AlternatingProjections, comm: Communicator) -> float | None:
    """Mean distance between two proxies of a class; None while there are none, or only one a class."""
    if ccp.subproblem < 0 or ccp.proxies.shape[1] < 2:
        return None
    mine = torch.tensor([len(ccp.proxies), spread(ccp.proxies, ccp.normalize)], dtype=torch.float64)
    every = comm.gather(mine, "spread")
    return float(_weighted(every[:, 1:], every[:, 0]))


def _weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Mean over the ranks of values [ranks, n], by the classes of each."""
    return (weights / weights.sum()) @ values
