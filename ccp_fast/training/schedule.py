"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "drop"]

DROP = 30 / 70  # of all steps


def rate_factor(schedule: Schedule, step: int, steps: int) -> float:
    """What the base rate is multiplied with in step 0 .. steps - 1.

    constant: 1. cosine: (1 + cos(π·step/steps)) / 2. drop: 1 in the first 3/7 of the steps, then 1/10.
    """
    if schedule == "cosine":
        return (1 + math.cos(math.pi * step / steps)) / 2
    return 0.1 if schedule == "drop" and step >= DROP * steps else 1.0
