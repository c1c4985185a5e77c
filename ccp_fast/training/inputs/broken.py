"""Looking for image files that cannot be decoded, before anything depends on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset

from ccp_fast.data import DataFileError
from ccp_fast.data.image_files import ImageFiles, decode
from ccp_fast.training.workers import as_it_is

CHUNK = 64  # files that a worker tries at a time


class _Trial(Dataset[list[str | None]]):
    """Why each file of a chunk cannot be decoded, None where it can."""

    def __init__(self, images: ImageFiles) -> None:
        self._images = images

    def __len__(self) -> int:
        return -(-len(self._images) // CHUNK)

    def __getitem__(self, chunk: int) -> list[str | None]:
        paths = self._images.paths[chunk * CHUNK : (chunk + 1) * CHUNK]
        return [_complaint(self._images, path) for path in paths]


def _complaint(images: ImageFiles, path: str) -> str | None:
    try:
        decode(images.root / path, "RGB", least=1)  # as small as it goes: what is missing shows all the same
    except DataFileError as error:
        return str(error)
    return None


def without_broken(images: ImageFiles, workers: int, say: Callable[[str], None]) -> ImageFiles:
    """The images that can be decoded, with the classes as they are; of each other one is said what is wrong."""
    trial = DataLoader(
        _Trial(images),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),
        collate_fn=as_it_is,
    )
    complaints = [complaint for chunk in trial for complaint in chunk]
    for complaint in complaints:
        if complaint is not None:
            say(complaint)
    whole = [i for i, complaint in enumerate(complaints) if complaint is None]
    return images if len(whole) == len(images) else images.of_images(torch.tensor(whole, dtype=torch.int64))
