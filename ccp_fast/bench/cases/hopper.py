"""Our losses with the forward pass for Hopper switched on, beside those without: to decide whether it stays."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from ccp_fast.bench.case import Implementation, Outputs, Step

NAME = "ccp_fast, Hopper path"
_SWITCH = "CCP_FAST_HOPPER"


def is_here(device: str) -> bool:
    """Is this a GPU that has what it needs? Elsewhere the switch does nothing."""
    where = torch.device(device)
    there = where.type == "cuda" and (where.index or 0) < torch.cuda.device_count()
    return there and torch.cuda.get_device_capability(where) == (9, 0)


def implementation(prepare: Callable[[Any], Step]) -> Implementation:
    """`prepare` is ours; the switch is on in its steps and nowhere else."""

    def prepared(inputs: Any) -> Step:
        step = prepare(inputs)

        def switched() -> Outputs:
            before = os.environ.get(_SWITCH)
            os.environ[_SWITCH] = "1"
            try:
                return step()
            finally:
                if before is None:
                    del os.environ[_SWITCH]
                else:
                    os.environ[_SWITCH] = before

        return switched

    return Implementation(NAME, "path", prepared)
