"""What can go wrong through no fault of the program."""

from __future__ import annotations


class UserError(Exception):
    """A sentence about something the user can put right; the command line prints it and exits with 2."""


class Diverged(UserError):
    """A loss or embeddings are not finite, and nothing that is trained from here gets better; checkpoints stay."""

    @classmethod
    def by(cls, what: str) -> Diverged:
        """With what may help."""
        return cls(f"{what}: training diverged; try a lower optimizer.lr, or optimizer.clip_norm")


class CannotWrite(UserError):
    """A file cannot be written: the disk is full, or nobody may write there."""

    def __init__(self, path: object, error: OSError) -> None:
        super().__init__(f"{path} cannot be written: {error.strerror or error}")
