"""The reference trainer behind `ccp-train`: needs the extra `ccp-fast[train]`.

Read it in this order: `config` (every setting), `trainer` (the loop), `learner` (one step), `methods` (what is
minimised over which batches), `data`, `model`, `objective`, `optimizer`; then `run_folder` and `checkpoint`
(what is kept), `compare` (experiments), `report`.
"""
