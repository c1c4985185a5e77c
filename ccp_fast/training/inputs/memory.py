"""Images in memory, augmented for a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ccp_fast.data import ImageSet
from ccp_fast.training.augment import Augment, to_float
from ccp_fast.training.inputs.network import NetworkInput
from ccp_fast.training.order import WHOLE
from ccp_fast.training.settings import Config


class MemoryInput:
    """The `ImageInput` of an `ImageSet`."""

    def __init__(self, images: ImageSet, config: Config, wanted: NetworkInput) -> None:
        self._images, self._wanted, self._seed = images, wanted, config.seed
        self._augment = Augment(config.augment)
        self._generator = torch.Generator()

    def augmented(self, step: int, samples: Sequence[int], part: slice = WHOLE) -> Tensor:
        """A random affine map of each image, see `ccp_fast.training.augment`."""
        # A seed for each (run, step); the large odd factor keeps the ranges of two runs far apart.
        self._generator.manual_seed((self._seed * 0x9E3779B97F4A7C15 + step) % 2**63)
        images = self._images.images[torch.tensor(samples)]
        return self._wanted.fit(self._augment(images, self._generator, part))

    def plain_batches(self, samples: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Images without augmentation."""
        for part in samples.split(batch_size):
            yield self._wanted.fit(to_float(self._images.images[part]))

    def follow(self, plan: Callable[[int], Sequence[int]], part: slice = WHOLE) -> None:
        """Nothing to do beforehand."""
