"""The reference trainer behind `ccp-train`: needs the extra `ccp-fast[train]`.

Read it in this order: `config` (every setting), `trainer` (the loop), `learner` (one step), `data`, `model`,
`objective`; then `run_folder` and `checkpoint` (what is kept), `compare` (experiments), `report`.
"""
