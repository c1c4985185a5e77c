"""Beyond one machine: proxies sharded by class over the ranks of torch.distributed.

`ShardedProxies` takes the place of proxies [C, K, D] in any loss, `ShardedLoss` is the module around it.
`embed_own_pool` and `retrieval` split the pool of CCP and the evaluation; `checkpoint` saves all of it for any number
of ranks, and `planner` says beforehand what it takes.
"""

from ccp_fast.distributed.communication import Message, RankLost, clear_errors, traced
from ccp_fast.distributed.evaluation import retrieval
from ccp_fast.distributed.network_state import load_network_state, network_state
from ccp_fast.distributed.pool import embed_own_pool
from ccp_fast.distributed.proxies import ShardedProxies
from ccp_fast.distributed.sharded_loss import ShardedLoss

__all__ = [
    "Message",
    "RankLost",
    "ShardedLoss",
    "ShardedProxies",
    "clear_errors",
    "embed_own_pool",
    "load_network_state",
    "network_state",
    "retrieval",
    "traced",
]
