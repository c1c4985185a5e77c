"""`ccp-train distributed`: the trainer's losses, plain or with CCP, over the processes that torchrun starts.

Each process trains on its part of the trainer's batches. The network is under DDP or FSDP2, the proxies are sharded by
class, evaluation is split, and a checkpoint is gone on from by any number of processes. Rank 0 writes the run's folder,
which all see and which is that of any other run.

`learner`      what learns, and one step of it
`limits`       what one process can do and several cannot
`checkpoints`  which of them stay
`subproblems`  what is known of CCP's proxies over all processes
`together`     errors that all processes hear of
`stop`         Ctrl-C, of which they hear too
`trainer`      the loop
"""

from ccp_fast.training.distributed.trainer import Spread, resume, train

__all__ = ["Spread", "resume", "train"]
