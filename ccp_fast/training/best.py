"""Which evaluation a run would be reported by, and how long there has been none better."""

from __future__ import annotations

import math
from typing import NamedTuple

from ccp_fast.training.metrics import Row
from ccp_fast.training.monitor import monitored
from ccp_fast.training.settings import Config


class Best(NamedTuple):
    """The best evaluation so far; where no class is held out to pick one, the last."""

    step: int | None = None
    metric: float = -math.inf
    stale: int = 0  # evaluations since then, but for those in a method's warm start

    def after(self, row: Row, config: Config) -> Best:
        """The better of this and a new evaluation; of two equal ones the first."""
        if not config.protocol.holds_out or monitored(row) > self.metric:
            return Best(row["step"], monitored(row))
        warming_up = row["step"] <= config.warm_start_steps
        return self if warming_up else self._replace(stale=self.stale + 1)

    def ends(self, config: Config) -> bool:
        """Whether a run has gone on for long enough without a better one."""
        patience = config.evaluation.patience
        return patience is not None and self.stale >= patience
