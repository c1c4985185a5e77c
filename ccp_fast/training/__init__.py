"""The reference trainer behind `ccp-train`: needs the extra `ccp-fast[train]`.

Read it in this order: `config` (every setting), `trainer` (the loop), `learner` (one step), `methods` (what is
minimised over which batches), `data`, `model`, `objective`, `optimizer`; then `run_folder` and `checkpoint`
(what is kept), `export` (what others use), `protocols` (several networks), `compare` (experiments), `report`.
"""

from __future__ import annotations

from ccp_fast.training.export import EmbeddingModel, load_model

__all__ = ["EmbeddingModel", "load_model"]
