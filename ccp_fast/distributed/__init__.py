"""Beyond one machine: proxies sharded by class over the ranks of torch.distributed.

`ShardedProxies` takes the place of proxies [C, K, D] in any loss, `ShardedLoss` is the module around it.
"""

from ccp_fast.distributed.communication import Message, RankLost, clear_errors, traced
from ccp_fast.distributed.proxies import ShardedProxies
from ccp_fast.distributed.sharded_loss import ShardedLoss

__all__ = ["Message", "RankLost", "ShardedLoss", "ShardedProxies", "clear_errors", "traced"]
