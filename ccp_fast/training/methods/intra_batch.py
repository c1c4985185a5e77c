"""Learning intra-batch connections: message passing within the batch, left out in retrieval."""

from __future__ import annotations

from ccp_fast._checks import Normalize
from ccp_fast.nn import IntraBatchLoss
from ccp_fast.training.errors import UserError
from ccp_fast.training.methods.base import Method
from ccp_fast.training.settings import Config


class IntraBatch(Method):
    """`ccp_fast.nn.IntraBatchLoss`, two cross entropies; the loss that the configuration names is not used.

    The published code goes back to its best weights where the rate drops; here they go on.
    """

    title = "Intra-batch connections"
    uses_loss = False

    def make_criterion(self) -> IntraBatchLoss:
        """Message passing and the two heads; UserError where attention cannot be split."""
        c, dim = self.config.intra_batch, self.config.model.dim
        if dim % c.heads:
            raise UserError(f"intra_batch.heads: expected a divisor of model.dim = {dim}, got {c.heads}")
        return IntraBatchLoss(
            self.data.num_classes,
            dim,
            c.heads,
            c.layers,
            temperature=c.temperature,
            smoothing=c.smoothing,
            dropout=c.dropout,
            attention_dropout=c.attention_dropout,
        )

    @classmethod
    def normalize_of(cls, config: Config) -> Normalize:
        """Cosines, as in the published evaluation."""
        return "unit"
