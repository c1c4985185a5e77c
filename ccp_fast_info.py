"""The command `ccp-info`: what was built, for which CPU and GPU, and why something is missing.

It lies beside the package and not in it: `import ccp_fast` is an error where the compiled operators are
missing or do not load, and telling why is what this command is for.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def main() -> int:
    """Print the facts; 1 if ccp_fast cannot be imported."""
    spec = importlib.util.find_spec("ccp_fast")
    if spec is None:
        sys.exit("ccp_fast is not installed in this Python: pip install ccp-fast")
    sys.modules["ccp_fast"] = importlib.util.module_from_spec(
        spec
    )  # a bare package: its __init__ does not run
    from ccp_fast._info import format_info, info

    facts = info()
    try:
        print(format_info(facts), flush=True)
    except BrokenPipeError:  # `ccp-info | head`: else Python says so once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return int("operators" in facts["missing"])


if __name__ == "__main__":
    sys.exit(main())
