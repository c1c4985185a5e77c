"""What one process can do and several cannot, yet."""

from __future__ import annotations

from ccp_fast.losses import MetricLoss
from ccp_fast.training.errors import UserError
from ccp_fast.training.settings import Config


def check_settings(config: Config, processes: int) -> None:
    """UserError for settings of another trainer."""
    for key, value, possible in (
        ("method", config.method, ("plain", "ccp")),
        ("ccp.pool", config.ccp.pool, ("fresh",)),
        ("compute.device", config.compute.device, ("cpu",)),
        ("compute.compile", config.compute.compile, (False,)),
        ("evaluation.backend", config.evaluation.backend, ("ccp_fast",)),
        ("optimizer.warm_up_embedding", config.optimizer.warm_up_embedding, (False,)),
        ("optimizer.clip_norm", config.optimizer.clip_norm, (None,)),
        ("optimizer.ema_decay", config.optimizer.ema_decay, (None,)),
        ("protocol.networks", 2 if config.protocol.is_whole else 1, (1,)),
    ):
        if value not in possible:
            expected = " or ".join(str(x) for x in possible)
            raise UserError(f"{key}: expected {expected} over several processes, got {value!r}")
    batch = config.batch.classes * config.batch.samples
    if batch < processes:
        raise UserError(
            f"batch.classes: expected a sample for each of the {processes} processes, "
            f"got a batch of {config.batch.classes} x {config.batch.samples}"
        )


def check_sampling(loss: MetricLoss, sample_rate: float) -> None:
    """UserError for a loss that does not sample classes."""
    if sample_rate == 1:
        return
    if loss.proxies is None:
        raise UserError(
            f"--sample-rate: expected 1 for a loss within the batch, got {sample_rate:g}: it has no proxies "
            "(loss.proxies_per_class gives it some)"
        )
    if loss.options.get("assignment") == "dynamic":
        raise UserError(
            f"--sample-rate: expected 1 with loss.options.assignment=dynamic, which looks at all proxies, "
            f"got {sample_rate:g}"
        )
