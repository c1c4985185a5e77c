"""What can go wrong through no fault of the program."""

from __future__ import annotations

from ccp_fast._system.errors import CannotWrite, UserError

__all__ = ["CannotWrite", "UserError"]
