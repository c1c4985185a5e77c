"""What all data sets share: labels, class names and images that are fetched one at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self


class ImageSource(ABC):
    """Images with a class each, in memory (`ImageSet`) or in files (`ImageFiles`).

    ``labels``: int64 ``[n]``, 0..num_classes-1, numbered within this source. ``class_names[label]`` names a class.
    """

    labels: Tensor
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        """Number of images."""
        return self.labels.shape[0]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @abstractmethod
    def image(self, index: int) -> Tensor:
        """One image, uint8 ``[channels, height, width]``; sizes may differ from one to the next."""

    @abstractmethod
    def caption(self, index: int) -> str:
        """Which image it is, in words: its class and where it comes from."""

    def of_classes(self, classes: Sequence[int]) -> Self:
        """The images of some classes, in the order they have here; class ``classes[i]`` gets the label i."""
        number = torch.full((self.num_classes,), -1)
        number[torch.tensor(classes, dtype=torch.int64)] = torch.arange(len(classes))
        labels = number[self.labels]
        rows = (labels >= 0).nonzero().squeeze(1)
        return self._taken(rows, labels[rows], tuple(self.class_names[c] for c in classes))

    def of_images(self, rows: Tensor) -> Self:
        """The images of some rows, int64 ``[n]``, with the classes as they are, even those left without an image."""
        return self._taken(rows, self.labels[rows], self.class_names)

    @abstractmethod
    def _taken(self, rows: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> Self:
        """The images of some rows, with other labels."""
