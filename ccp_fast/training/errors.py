"""What can go wrong through no fault of the program."""

from __future__ import annotations


class UserError(Exception):
    """A sentence about something the user can put right; the command line prints it and exits with 2."""
