"""Learning intra-batch connections: the samples of a batch refine each other's embeddings while training."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MessagePassingLayer(nn.Module):
    """One round of messages between all samples of a batch, [B, D] to [B, D].

    α_ij = e^{q_i·k_j/√d_h} / (1 + Σ_j e^{q_i·k_j/√d_h}) over the whole batch, i itself included; the 1 lets a
    sample listen to nobody. m_i = W_o·concat over the heads of Σ_j α_ij v_j;
    h' = LN(h + m); h'' = LN(h' + W₂ ReLU(W₁ h')), with W₁ from D to 4·D.

    Args:
        dim: D, a multiple of heads.
        heads: of the attention, with d_h = D/heads components each.
        dropout: of the messages and of both layers of the feed-forward part.
        attention_dropout: of the weights α.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.1, attention_dropout: float = 0.1) -> None:
        super().__init__()
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(f"heads: expected a divisor of dim = {dim}, got {heads}")
        self.heads, self.attention_dropout = heads, attention_dropout
        self.queries_keys_values = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.message_dropout, self.hidden_dropout, self.out_dropout = (nn.Dropout(dropout) for _ in range(3))
        for weight in (*self.queries_keys_values.weight.chunk(3), self.out.weight):
            nn.init.xavier_uniform_(weight)
        for bias in (self.queries_keys_values.bias, self.out.bias):
            nn.init.zeros_(bias)

    def forward(self, h: Tensor) -> Tensor:
        """Refined embeddings [B, D]."""
        h = self.norm1(h + self.message_dropout(self.out(self._messages(h))))
        hidden = self.hidden_dropout(F.relu(self.widen(h)))
        return cast(Tensor, self.norm2(h + self.out_dropout(self.narrow(hidden))))

    def _messages(self, h: Tensor) -> Tensor:
        split = self.queries_keys_values(h).unflatten(1, (3, self.heads, -1))  # [B, 3, H, d_h]
        q, k, v = split.permute(1, 2, 0, 3)  # [H, B, d_h] each
        # A key of zeros has the logit 0, so it adds the 1 below the fraction; its value adds nothing above.
        nobody = q.new_zeros(self.heads, 1, q.shape[2])
        messages = F.scaled_dot_product_attention(
            q,
            torch.cat([k, nobody], 1),
            torch.cat([v, nobody], 1),
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        return messages.transpose(0, 1).flatten(1)


class IntraBatchMessagePassing(nn.Module):
    """Embeddings [B, in_dim] refined by `layers` rounds of messages within the batch, [B, dim].

    It takes part in training only (see `IntraBatchLoss`): embeddings to search with are the network's own, so
    a sample's does not depend on what it is embedded with.

    Args:
        dim: of the refined embeddings.
        heads: of the attention, a divisor of dim.
        layers: rounds.
        in_dim: of the embeddings; given, a linear map from in_dim to dim comes first, as in the published code,
            also where both are equal. None: it is dim, and there is no such map.
        dropout, attention_dropout: see `MessagePassingLayer`.

    Raises ValueError for heads that do not divide dim, or fewer than one layer.

    Source: Seidenschwarz, Elezi, Leal-Taixé 2021 (arXiv 2102.07753); the 1 in the attention is in the code
    published with it.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 2,
        layers: int = 1,
        *,
        in_dim: int | None = None,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers: expected at least 1, got {layers}")
        self.project = nn.Identity() if in_dim is None else nn.Linear(in_dim, dim)
        self.layers = nn.ModuleList(
            MessagePassingLayer(dim, heads, dropout=dropout, attention_dropout=attention_dropout)
            for _ in range(layers)
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        """Refined embeddings [B, dim]."""
        h: Tensor = self.project(embeddings)
        for layer in self.layers:
            h = layer(h)
        return h


class IntraBatchLoss(nn.Module):
    """CE(W_g·BN(h'')/T) + CE(W_e·f/T) of embeddings f and what message passing makes of them, h''.

    Both cross entropies have targets smoothed to 1 − smoothing, and smoothing/C over all classes. The second
    trains the network that is used alone afterwards; through the first, gradients reach each sample from the
    whole batch. The batch norm's shift stays 0.

    Args:
        num_classes: C.
        dim: of the embeddings.
        heads, layers, dropout, attention_dropout: see `IntraBatchMessagePassing`.
        temperature: T.
        smoothing: of the labels.

    Source: arXiv 2102.07753 and the code published with it. Its T, heads and layers: CUB-200-2011 .2, 2, 1;
    Cars196 .111, 8, 2; SOP .605, 8, 1; In-shop .186, 4, 1.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        heads: int = 2,
        layers: int = 1,
        *,
        temperature: float = 0.2,
        smoothing: float = 0.1,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature: expected a number above 0, got {temperature}")
        if not 0 <= smoothing <= 1:
            raise ValueError(f"smoothing: expected a number from 0 to 1, got {smoothing}")
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        self.temperature, self.smoothing = temperature, smoothing
        self.messages = IntraBatchMessagePassing(
            dim, heads, layers, in_dim=dim, dropout=dropout, attention_dropout=attention_dropout
        )
        self.neck = nn.BatchNorm1d(dim)
        self.neck.bias.requires_grad_(False)
        self.refined_head = nn.Linear(dim, num_classes, bias=False)
        self.head = nn.Linear(dim, num_classes)
        nn.init.normal_(self.refined_head.weight, std=1e-3)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of embeddings [B, dim] with labels [B] int64 in [0, C); B > 1 in training mode, for the BN."""
        refined = self.refined_head(self.neck(self.messages(embeddings)))
        return self._cross_entropy(refined, labels) + self._cross_entropy(self.head(embeddings), labels)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits / self.temperature, labels, label_smoothing=self.smoothing)
