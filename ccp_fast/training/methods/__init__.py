"""The ways to train, one file each; `base` says what a method is, `plain` is the shortest.

`plain`        the loss alone
`ccp`          proxies chosen anew by k-center, the network kept near the last solution
`alternating`  projections onto feasible sets, each induced by one sample per class; hard class mining
`intra_batch`  message passing within the batch
`xbm`          a memory of past embeddings
"""

from __future__ import annotations

from ccp_fast.training.methods.alternating import Alternating
from ccp_fast.training.methods.base import Method
from ccp_fast.training.methods.ccp import Ccp
from ccp_fast.training.methods.intra_batch import IntraBatch
from ccp_fast.training.methods.plain import Plain
from ccp_fast.training.methods.xbm import Xbm
from ccp_fast.training.objective import PRESETS
from ccp_fast.training.settings import Config

__all__ = ["METHODS", "Method", "run_name", "title"]

METHODS: dict[str, type[Method]] = {
    "plain": Plain,
    "ccp": Ccp,
    "alternating": Alternating,
    "intra-batch": IntraBatch,
    "xbm": Xbm,
}


def title(config: Config) -> str:
    """Loss and method for headings: "C2 (Euclidean contrastive) with CCP"."""
    method = METHODS[config.method]
    return (PRESETS[config.loss.name].title if method.uses_loss else "") + method.title


def run_name(config: Config) -> str:
    """Data, loss and method for folders: "glyphs-c2-ccp"."""
    loss = [config.loss.name] if METHODS[config.method].uses_loss else []
    return "-".join([config.data.name, *loss, config.method])
