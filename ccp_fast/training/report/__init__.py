"""What a person looks at: self-contained HTML pages of a run, of several, of a comparison."""

from __future__ import annotations

from ccp_fast.training.report.comparison_report import write_comparison_report
from ccp_fast.training.report.run_report import write_run_report
from ccp_fast.training.report.runs_report import write_runs_report

__all__ = ["write_comparison_report", "write_run_report", "write_runs_report"]
