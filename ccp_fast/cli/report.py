"""`ccp-report`: starts the report if what it needs is installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from ccp_fast.cli.report_command import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ccp_fast"):
            raise
        print(f"ccp-report needs {error.name}: pip install 'ccp-fast[train]'", file=sys.stderr)
        sys.exit(2)
    app(prog_name="ccp-report")


if __name__ == "__main__":
    main()
