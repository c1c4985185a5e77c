"""Starting a command if what it needs is installed."""

from __future__ import annotations

import importlib
import sys


def start(command: str, module: str, extra: str) -> None:
    """Run the `app` of a module; without its dependencies say which extra brings them, and exit with 2."""
    try:
        app = importlib.import_module(module).app
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ccp_fast"):
            raise
        print(f"{command} needs {error.name}: pip install 'ccp-fast[{extra}]'", file=sys.stderr)
        sys.exit(2)
    app(prog_name=command)
