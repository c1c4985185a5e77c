"""For every test: which ccp_fast is tested, what Ctrl-C does, how hypothesis looks for counter-examples."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "ccp_fast" / "_ops.so").exists():
    # `python -m pytest` puts the checkout first on sys.path, where the package has no compiled operators.
    # The installed one is meant, here and in the processes that tests start.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    os.environ["PYTHONSAFEPATH"] = "1"

# A shell starts its background jobs with Ctrl-C ignored; the tests of it need it whoever started them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Deadlines measure how busy the machine is. CI draws the same examples every time; elsewhere they are new.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
