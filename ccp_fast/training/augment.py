"""Random shifts, turns, sizes, slants and holes for a whole batch at once, on the fly from uint8."""

from __future__ import annotations

from math import radians

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ccp_fast.training.order import WHOLE
from ccp_fast.training.settings import AugmentConfig


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 0..1, the scale the network is trained on."""
    return images.float().div_(255)


class Augment:
    """One random affine map and at most one erased rectangle per image.

    The map is drawn per image: turn, slant, size (each side by itself) and shift, applied in one bilinear
    sampling. What falls outside is background. All draws come from the generator handed in, so a batch is a
    function of its images and the generator's state.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = config

    def __call__(self, images: Tensor, generator: torch.Generator, part: slice = WHOLE) -> Tensor:
        """uint8 ``[n, c, h, w]`` to augmented float32 of the same shape, 0..1; or a part of them, as in the whole."""
        draws = torch.rand(len(images), 11, generator=generator)[part]
        images = images[part]
        moved = grid_sample(
            to_float(images),
            affine_grid(self._maps(draws), list(images.shape), align_corners=False),
            align_corners=False,
        )
        return moved * self._kept(draws, images.shape[2], images.shape[3])

    def _maps(self, draws: Tensor) -> Tensor:
        """[n, 2, 3] maps from output to input coordinates, both in -1..1."""
        c = self.config
        turn, slant, *shift = (2 * draws[:, i] - 1 for i in range(4))
        turn, slant = turn * radians(c.rotate), slant * c.shear
        grow = torch.exp((2 * draws[:, 4:6] - 1) * torch.tensor(1 + c.scale).log())
        cos, sin = turn.cos() / grow[:, 0], turn.sin() / grow[:, 1]
        rows = [
            torch.stack([cos, -sin + slant, 2 * c.shift * shift[0]], dim=1),
            torch.stack([turn.sin() / grow[:, 0], turn.cos() / grow[:, 1], 2 * c.shift * shift[1]], dim=1),
        ]
        return torch.stack(rows, dim=1)

    def _kept(self, draws: Tensor, height: int, width: int) -> Tensor:
        """[n, 1, h, w]: 0 inside the erased rectangle, 1 elsewhere."""
        wanted = draws[:, 6] < self.config.erase
        inside = []
        for i, side in ((7, height), (9, width)):
            length = (0.15 + 0.25 * draws[:, i]) * side
            start = draws[:, i + 1] * (side - length)
            at = torch.arange(side) + 0.5
            inside.append((at >= start[:, None]) & (at < (start + length)[:, None]))
        hole = inside[0][:, :, None] & inside[1][:, None, :] & wanted[:, None, None]
        return (~hole).float().unsqueeze(1)
