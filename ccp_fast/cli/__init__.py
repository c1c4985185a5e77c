"""Command lines: `ccp-train` in `train_command` and its commands beside it, `ccp-data`, `ccp-report`."""
