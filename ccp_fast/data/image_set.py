"""A labelled set of images held in memory, all of one size."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ccp_fast.data.source import ImageSource


@dataclass(frozen=True)
class ImageSet(ImageSource):
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

    def image(self, index: int) -> Tensor:
        """One image, uint8 ``[channels, height, width]``."""
        return self.images[index]

    def caption(self, index: int) -> str:
        """The class in the source."""
        name = self.class_names[int(self.labels[index])]
        return f"{name} in {self.sources[int(self.source_ids[index])]}"

    def _taken(self, rows: Tensor, labels: Tensor, class_names: tuple[str, ...]) -> ImageSet:
        return ImageSet(self.images[rows], labels, class_names, self.sources, self.source_ids[rows])
