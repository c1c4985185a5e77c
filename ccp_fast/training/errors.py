"""What can go wrong through no fault of the program."""

from __future__ import annotations

from ccp_fast._system.errors import CannotWrite, UserError

__all__ = ["CannotWrite", "Diverged", "UserError"]


class Diverged(UserError):
    """A loss or embeddings are not finite, and nothing that is trained from here gets better; checkpoints stay."""

    @classmethod
    def by(cls, what: str) -> Diverged:
        """With what may help."""
        return cls(f"{what}: training diverged; try a lower optimizer.lr, or optimizer.clip_norm")
