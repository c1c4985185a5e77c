"""What can go wrong through no fault of the program."""

from __future__ import annotations


class UserError(Exception):
    """A sentence about something the user can put right; the command line prints it and exits with 2."""


class CannotWrite(UserError):
    """A file cannot be written: the disk is full, or nobody may write there."""

    def __init__(self, path: object, error: OSError) -> None:
        super().__init__(f"{path} cannot be written: {error.strerror or error}")
