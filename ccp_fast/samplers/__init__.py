"""Which samples go into a batch, and which into the pool from which proxies are chosen.

Every sampler here is counter-based: batch number b, or pool number k, is a function of the labels, the seed
and that number alone. A run that is resumed therefore needs no generator state to see the same batches.
"""

from .class_pool import ClassPoolSampler, Pool
from .mper_class import MPerClassSampler

__all__ = ["ClassPoolSampler", "MPerClassSampler", "Pool"]
