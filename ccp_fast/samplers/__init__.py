"""Which samples go into a batch, and which into the pool from which proxies are chosen.

`MPerClassSampler`       P classes with M samples each, in shuffled passes
`RepresentativeSampler`  the same, with a representative of each class that is kept for a while
`HardClassSampler`       the same, the classes of a batch being near each other
`ClassPoolSampler`       the candidates for CCP's proxies

Every sampler here is counter-based: batch number b, or pool number k, is a function of the labels, the seed
and that number alone (and of the class vectors it was given, in hard class mining). A run that is resumed
therefore needs no generator state to see the same batches.
"""

from .class_pool import ClassPoolSampler, Pool
from .hard_class import HardClassSampler
from .mper_class import MPerClassSampler
from .representative import RepresentativeSampler

__all__ = ["ClassPoolSampler", "HardClassSampler", "MPerClassSampler", "Pool", "RepresentativeSampler"]
