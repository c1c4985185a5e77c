"""`ccp-info`: what was built, for which CPU and GPU, and why something is missing."""

from __future__ import annotations

from ccp_fast._info import format_info, info


def main() -> None:
    """Print what `ccp_fast.info()` knows."""
    print(format_info(info()))


if __name__ == "__main__":
    main()
