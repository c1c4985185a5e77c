"""What convolutional backbones are made of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.functional import pad


class ConvNorm(nn.Module):
    """Convolution, batch norm, activation."""

    def __init__(
        self, convolution: nn.Conv2d, *, eps: float = 1e-5, activation: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__()
        self.conv = convolution
        self.bn = nn.BatchNorm2d(convolution.out_channels, eps=eps)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] to [n, c', h', w']."""
        x = self.bn(self.conv(x))
        return x if self.activation is None else self.activation(x)


class SameConv2d(nn.Conv2d):
    """Padded as TensorFlow's "SAME": outputs ⌈side / stride⌉ long, an odd pixel of padding below and right."""

    def forward(self, input: Tensor) -> Tensor:
        """[n, c, h, w] to [n, c', ⌈h/s⌉, ⌈w/s⌉]."""
        height, width = (self._missing(axis, input.shape[2 + axis]) for axis in (0, 1))
        if height or width:
            input = pad(input, [width // 2, width - width // 2, height // 2, height - height // 2])
        return super().forward(input)

    def _missing(self, axis: int, side: int) -> int:
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        return max(0, (-(-side // stride) - 1) * stride + kernel - side)
