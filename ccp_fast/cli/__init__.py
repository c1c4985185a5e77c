"""Command lines: `ccp-train` in `train`, `ccp-info` in `info`."""
