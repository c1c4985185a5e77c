"""Deep metric learning with fused kernels: proxy losses, iterated projections (CCP), k-center.

    import ccp_fast
    loss = ccp_fast.functional.contrastive(embeddings, proxies, labels)

`functional` has the fused losses and selections as functions, `losses` the modules that own proxies,
`AlternatingProjections` the CCP algorithm, `ClassMemory` a pool for it, `CrossBatchMemory`, `nn` and the samplers
other methods, `evaluation` what a trainer needs around them.
"""

from __future__ import annotations

import ccp_fast._library  # noqa: F401  first: without the operators nothing below works
from ccp_fast import evaluation, functional, losses, nn, reference, samplers
from ccp_fast._info import __version__, info
from ccp_fast.ccp import AlternatingProjections, embed_pool
from ccp_fast.class_memory import ClassMemory
from ccp_fast.cross_batch_memory import CrossBatchMemory
from ccp_fast.projection import Projection

__all__ = [
    "AlternatingProjections",
    "ClassMemory",
    "CrossBatchMemory",
    "Projection",
    "__version__",
    "embed_pool",
    "evaluation",
    "functional",
    "info",
    "losses",
    "nn",
    "reference",
    "samplers",
]
