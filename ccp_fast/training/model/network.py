"""Images to embeddings: what every network of the trainer has in common, and backbones with a head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn

from ccp_fast.training.errors import UserError
from ccp_fast.training.inputs import NetworkInput

Pooling = Literal["gap", "gap+gmp", "token"]


class Network(nn.Module, ABC):
    """Normalised images ``[n, c, h, w]`` to embeddings ``[n, dim]`` in float32, not normalised.

    A network implements `vectors`; here is what all do around it.

    Attributes:
        input: the images it wants.
        bf16: compute in bfloat16 where autocast finds it safe; parameters and embeddings stay float32.
        channels_last: the memory format of feature maps.
        frozen_norms: batch norms keep their running statistics, scales and shifts.
        embedding: the last layer.
    """

    input: NetworkInput
    embedding: nn.Linear
    bf16 = False
    channels_last = False
    frozen_norms = False

    @abstractmethod
    def vectors(self, images: Tensor) -> Tensor:
        """Embeddings, in whatever precision they come out."""

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings, on the network's device."""
        images = images.to(next(self.parameters()).device, non_blocking=True)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if not self.bf16:
            return self.vectors(images)
        with torch.autocast(images.device.type, torch.bfloat16):
            return self.vectors(images).float()

    def train(self, mode: bool = True) -> Network:
        """As every module's, but frozen norms stay in eval mode."""
        super().train(mode)
        if self.frozen_norms:
            for norm in _batch_norms(self):
                norm.eval()
        return self

    def freeze_norms(self) -> None:
        """Freeze all batch norms, as fine-tuning with small batches usually does."""
        self.frozen_norms = True
        for norm in _batch_norms(self):
            norm.eval().requires_grad_(False)


class Trunk(Protocol):
    """A backbone."""

    width: int  # channels of what it returns: maps [n, width, h, w] or tokens [n, t, width]
    input: NetworkInput

    def __call__(self, images: Tensor) -> Tensor:
        """Features."""


class EmbeddingNetwork(Network):
    """A backbone, pooling, and one linear map to the embedding.

    Args:
        trunk: the backbone.
        dim: of the embedding.
        pooling: over positions of a feature map, or over the image's tokens of a transformer. "gap": mean;
            "gap+gmp": mean plus maximum; "token": the first token, of transformers that have a class token.
    """

    def __init__(self, trunk: Trunk, dim: int, pooling: Pooling) -> None:
        super().__init__()
        self.trunk = cast(nn.Module, trunk)
        self.input, self._pooling = trunk.input, pooling
        self._prefix: int = getattr(trunk, "prefix_tokens", 0)
        if pooling == "token" and self._prefix == 0:
            raise UserError("model.pooling: expected gap or gap+gmp for a network without a class token")
        self.embedding = nn.Linear(trunk.width, dim)

    def vectors(self, images: Tensor) -> Tensor:
        """Embeddings."""
        return cast(Tensor, self.embedding(self._pool(self.trunk(images))))

    def _pool(self, features: Tensor) -> Tensor:
        """[n, c, h, w] or [n, t, c] to [n, c]."""
        if self._pooling == "token":
            return features[:, 0]
        positions = (
            features.flatten(2).transpose(1, 2) if features.dim() == 4 else features[:, self._prefix :]
        )
        mean = positions.mean(1)
        return mean if self._pooling == "gap" else mean + positions.amax(1)


def _batch_norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
