"""The reference trainer behind `ccp-train`: needs the extra `ccp-fast[train]`.

Read it in this order: `config` (every setting), `trainer` (the loop), `learner` (one step), `methods` (what is
minimised over which batches), `data`, `model`, `objective`, `optimizer`; then `run_folder` and `checkpoint`
(what is kept), `export` (what others use), `protocols` (several networks), `compare` (experiments), `report`.

The names below are for trainers of one's own, as in `examples/train_sop.py`.
"""

from __future__ import annotations

from ccp_fast.training.datasets import hold_out
from ccp_fast.training.export import EmbeddingModel, load_model
from ccp_fast.training.inputs import ImageInput, NetworkInput, open_input
from ccp_fast.training.model import Network, build_network, embed
from ccp_fast.training.presets import configured
from ccp_fast.training.settings import Config

__all__ = [
    "Config",
    "EmbeddingModel",
    "ImageInput",
    "Network",
    "NetworkInput",
    "build_network",
    "configured",
    "embed",
    "hold_out",
    "load_model",
    "open_input",
]
