"""`ccp-info`: what was built, for which CPU and GPU, and why something is missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Print `ccp_fast.info()`, one line a fact."""
    try:
        import ccp_fast
    except ImportError as error:
        sys.exit(str(error))
    for name, value in ccp_fast.info().items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
