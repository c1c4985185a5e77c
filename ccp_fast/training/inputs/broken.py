"""Looking for image files that cannot be decoded, before anything depends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.utils.data import DataLoader, Dataset

from ccp_fast.data import DataFileError
from ccp_fast.data.image_files import ImageFiles, decode
from ccp_fast.training.inputs.remembered import remember, state_of, whole_files
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


def without_broken(
    images: ImageFiles, workers: int, say: Callable[[str], None], *, trust: bool = True
) -> ImageFiles:
    """The images that can be decoded, with the classes as they are; of each other one is said what is wrong.

    trust: files that were decoded before and have not changed since are not tried again.
    """
    states = [state_of(images.root / path) for path in images.paths]
    known = whole_files(images.root)
    tried = [
        i for i, path in enumerate(images.paths) if not (trust and states[i] and known.get(path) == states[i])
    ]
    broken = set()
    for i, complaint in zip(tried, _complaints(images.of_images(_rows(tried)), workers), strict=True):
        known.pop(images.paths[i], None)
        state = states[i]
        if complaint is not None:
            say(complaint)
            broken.add(i)
        elif state is not None:
            known[images.paths[i]] = state
    if tried:
        remember(images.root, known)
    return images.of_images(_rows(i for i in range(len(images)) if i not in broken)) if broken else images


def _complaints(images: ImageFiles, workers: int) -> list[str | None]:
    if not len(images):
        return []
    trial = DataLoader(
        _Trial(images),
        batch_size=None,
        num_workers=workers,
        generator=torch.Generator(),
        collate_fn=as_it_is,
    )
    return [complaint for chunk in trial for complaint in chunk]


def _rows(numbers: Iterable[int]) -> torch.Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64)
