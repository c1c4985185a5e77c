"""The network for glyphs: four convolutions and a linear map, 0.4 million parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ccp_fast.training.inputs import NetworkInput
from ccp_fast.training.model.network import Network


class GlyphNet(Network):
    """Images ``[n, 1, 32, 32]`` to embeddings ``[n, dim]``, not normalised.

    The first convolution halves the image, to save time; the last feature map is flattened, not averaged:
    where a stroke lies tells characters apart.
    """

    input = NetworkInput(channels=1, size=32, mean=(0.0,), std=(1.0,))

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        super().__init__()
        a, b, c, d = widths
        self.features = nn.Sequential(
            *_block(1, a, stride=2),  # 16 x 16
            *_block(a, b, pool=True),  # 8 x 8
            *_block(b, c, pool=True),  # 4 x 4
            *_block(c, d),
        )
        self.embedding = nn.Linear(d * 4 * 4, dim)

    def vectors(self, images: Tensor) -> Tensor:
        """Embeddings."""
        return cast(Tensor, self.embedding(self.features(images).flatten(1)))


def _block(channels: int, out: int, *, stride: int = 1, pool: bool = False) -> list[nn.Module]:
    # Pooled before it is normalised and cut off: three quarters of that work fall away.
    convolution = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
    pooling = [nn.MaxPool2d(2)] if pool else []
    return [convolution, *pooling, nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
