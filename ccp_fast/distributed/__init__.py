"""Beyond one machine: proxies sharded by class over the ranks of torch.distributed.

`ShardedProxies` takes the place of proxies [C, K, D] in any loss, `ShardedLoss` is the module around it.
"""

from ccp_fast.distributed.communication import Message, RankLost, clear_errors, traced
from ccp_fast.distributed.proxies import ShardedProxies

__all__ = ["Message", "RankLost", "ShardedProxies", "clear_errors", "traced"]
