"""Errors that all processes hear of: what goes wrong in one must not leave the others waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from ccp_fast.data import DataFileError
from ccp_fast.distributed import clear_errors
from ccp_fast.training.errors import UserError

T = TypeVar("T")


def agreed(action: Callable[[], T]) -> T:
    """What an action that sends no messages returns, on every rank.

    If it failed on any, UserError on all of them: with the sentence of the first on rank 0, empty on the others.
    """
    returned, wrong = [], None
    try:
        returned.append(action())
    except (UserError, DataFileError) as error:
        wrong = str(error)
    every: list[str | None] = [None] * dist.get_world_size()
    with clear_errors("start"):
        dist.all_gather_object(every, wrong)
    said = [sentence for sentence in every if sentence is not None]
    if said:
        raise UserError(said[0] if dist.get_rank() == 0 else "")
    return returned[0]
