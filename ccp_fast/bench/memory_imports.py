"""What the processes of `memory` share: imported once, before they are forked."""

from __future__ import annotations

from contextlib import suppress

import ccp_fast.bench.cases
import ccp_fast.bench.memory  # noqa: F401

with suppress(ModuleNotFoundError):
    import pytorch_metric_learning.losses
    import pytorch_metric_learning.utils.accuracy_calculator  # noqa: F401
