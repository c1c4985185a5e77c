"""The pool of candidates for CCP's proxies, each rank embedding those of its own classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from ccp_fast.alternating.pool import EmbeddedPool, Pool, embed_pool
from ccp_fast.distributed.proxies import ShardedProxies


class OwnPool(NamedTuple):
    """The part of a `ccp_fast.alternating.pool.Pool` whose classes are a rank's."""

    indices: Tensor  # [n] int64
    offsets: Tensor  # [C_r + 1] int64


def own_pool(pool: Pool, proxies: ShardedProxies) -> OwnPool:
    """The samples of this rank's classes, from a pool of all classes that every rank has drawn with the same seed."""
    offsets = pool.offsets[proxies.begin : proxies.end + 1]
    return OwnPool(pool.indices[offsets[0] : offsets[-1]], offsets - offsets[0])


def embed_own_pool(
    model: nn.Module,
    images_of: Callable[[Tensor], Tensor],
    pool: Pool,
    proxies: ShardedProxies,
    batch_size: int = 256,
) -> EmbeddedPool:
    """`ccp_fast.embed_pool` of this rank's classes alone, for `AlternatingProjections.project` on every rank.

    All ranks pass as many batches through the model, some of them empty: one sharded by FSDP2 needs all ranks for
    each. k-center then runs where the class lives, without a message.
    """
    own = own_pool(pool, proxies)
    every = proxies.comm.gather_integers([len(own.indices)], proxies.proxies.device, "pool sizes")
    batches = max(-(-n // batch_size) for (n,) in every)
    return embed_pool(model, images_of, own, batch_size, batches=batches)
