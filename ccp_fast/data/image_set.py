"""A labelled set of images held in memory: what every data set of this package returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ImageSet:
    """Images with a class each, and where each came from.

    ``images``: uint8 ``[n, channels, height, width]``, 0..255. ``labels``: int64 ``[n]``, 0..num_classes-1,
    numbered within this set. ``class_names[label]`` names a class. ``source_ids``: int64 ``[n]``, the row of
    ``sources`` an image was taken from (a typeface, a camera, ...).
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    sources: tuple[str, ...]
    source_ids: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return self.labels.shape[0]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)
