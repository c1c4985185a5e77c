"""What a person looks at: one self-contained HTML page per run, and one per comparison."""

from __future__ import annotations

from ccp_fast.training.report.comparison_report import write_comparison_report
from ccp_fast.training.report.run_report import write_run_report

__all__ = ["write_comparison_report", "write_run_report"]
