"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Literal


def rate_factor(schedule: Literal["constant", "cosine"], step: int, steps: int) -> float:
    """What the base rate is multiplied with in step 0 .. steps - 1: 1, or (1 + cos(π·step/steps)) / 2."""
    return 1.0 if schedule == "constant" else (1 + math.cos(math.pi * step / steps)) / 2
