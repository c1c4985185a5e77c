"""The registered operators as PyTorch sees them: fakes for tracing, and autograd. Kernels are in csrc/."""

from __future__ import annotations

import ccp_fast._library  # noqa: F401  loads the operators before anything is registered for them
