"""`ccp-bench`: starts the benchmarks if what they need is installed."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from ccp_fast.bench.command import app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ccp_fast"):
            raise
        print(f"ccp-bench needs {error.name}: pip install 'ccp-fast[bench]'", file=sys.stderr)
        sys.exit(2)
    app(prog_name="ccp-bench")


if __name__ == "__main__":
    main()
