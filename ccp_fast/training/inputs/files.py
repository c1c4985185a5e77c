"""Images in files: decoded, cropped and resized by worker processes, a few batches ahead of the step.

A batch is a function of seed, step and samples, whatever the number of workers and wherever a run was interrupted.
What workers decode ahead is a guess at the samples of the next steps; a batch that turns out to be another one is
decoded anew. At most `AHEAD` requests a worker are in memory, as bytes; float they become on the network's device.
"""

from __future__ import annotations

import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from ccp_fast.data import DataFileError
from ccp_fast.data.image_files import Mode
from ccp_fast.samplers._random import random_bits
from ccp_fast.training.errors import UserError
from ccp_fast.training.inputs.network import NetworkInput
from ccp_fast.training.order import WHOLE
from ccp_fast.training.settings import Config, CropConfig
from ccp_fast.training.workers import as_it_is, received, worker_count

AHEAD = 2  # requests that a worker may be ahead
PART = 64  # images that a worker decodes at a time in evaluation

Plan = Callable[[int], Sequence[int]]


class Request(NamedTuple):
    """Which images, and of which step; None: as they are seen in evaluation."""

    samples: list[int]
    step: int | None = None
    places: Sequence[int] = ()  # of the samples in the step's batch


def of_batch(step: int, batch: Sequence[int], part: slice) -> Request:
    """For a part of a batch."""
    places = range(len(batch))[part]
    return Request([batch[place] for place in places], step, places)


class Album(Protocol):
    """Images that are decoded when they are asked for: `ImageFiles`, `GivenPictures`."""

    def picture(self, index: int, mode: Mode, least: int | None = None) -> Image.Image:
        """In colour or gray; a JPEG perhaps smaller, with at least so many pixels a side."""


class Answer(NamedTuple):
    """The images of a request, or why there are none."""

    samples: list[int]
    images: Tensor | NDArray[np.uint8] | str  # [n, channels, size, size] uint8


class Pictures(Dataset[Answer]):
    """What a worker does: from a request to its images, each a function of (seed, step, place in the batch, file).

    In training the image is resized to a shorter side of `crop.shorter_side` pixels; of it a rectangle is cut, whose
    area is that of a square of `crop.least` to `shorter_side` pixels and whose aspect is 1/`crop.aspect` to
    `crop.aspect`, anywhere; it is resized to what the network wants and mirrored in half of the cases. In evaluation it
    is the square in the middle.
    """

    def __init__(self, images: Album, crop: CropConfig, wanted: NetworkInput, seed: int) -> None:
        self._images, self._crop, self._size, self._seed = images, crop, wanted.size, seed
        self._mode: Mode = "L" if wanted.channels == 1 else "RGB"

    def __getitem__(self, request: Request) -> Answer:
        """Errors come back as text: an exception would arrive with the traceback of another process."""
        channels = () if self._mode == "L" else (3,)
        pictures = np.empty((len(request.samples), self._size, self._size, *channels), dtype=np.uint8)
        try:
            for i, sample in enumerate(request.samples):
                picture = self._resized(sample)
                if request.step is None:
                    pictures[i] = np.asarray(self._middle(picture))
                else:
                    pictures[i] = np.asarray(self._cut(picture, (request.step, request.places[i])))
        except DataFileError as error:
            return Answer(request.samples, str(error))
        images = torch.from_numpy(pictures)
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
        return Answer(request.samples, _to_be_sent(images.contiguous()))

    def _resized(self, sample: int) -> Image.Image:
        least = self._crop.shorter_side
        picture = self._images.picture(sample, self._mode, least)
        scale = least / min(picture.size)
        width, height = (max(least, round(side * scale)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.BILINEAR)

    def _middle(self, picture: Image.Image) -> Image.Image:
        left, top = ((side - self._size) // 2 for side in picture.size)
        return picture.crop((left, top, left + self._size, top + self._size))

    def _cut(self, picture: Image.Image, place: tuple[int, int]) -> Image.Image:
        c = self._crop
        side, aspect, across, down, mirrored = random_bits(self._seed, place, 5) / 2.0**64
        side = c.least + side * (c.shorter_side - c.least)
        stretch = c.aspect ** (aspect - 0.5)  # the root of the aspect
        width, height = min(side * stretch, picture.width), min(side / stretch, picture.height)
        left, top = across * (picture.width - width), down * (picture.height - height)
        box = (left, top, left + width, top + height)
        picture = picture.resize((self._size, self._size), Image.Resampling.BILINEAR, box)
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored < c.mirror else picture


def _to_be_sent(images: Tensor) -> Tensor | NDArray[np.uint8]:
    """From a worker in shared memory or, where /dev/shm has no room for it, to be copied through a pipe.

    torch itself shares a tensor in a thread of the worker that can only print what fails: the trainer would wait for
    ever. An array it copies.
    """
    if get_worker_info() is None:
        return images
    try:
        images.share_memory_()
    except RuntimeError:
        return cast("NDArray[np.uint8]", images.numpy())
    return images


class FilesInput:
    """The `ImageInput` of `ImageFiles` and `GivenPictures`."""

    def __init__(self, images: Album, config: Config, wanted: NetworkInput) -> None:
        if wanted.size > config.crop.shorter_side:
            raise UserError(
                f"crop.shorter_side: expected at least {wanted.size}, what the network is shown, "
                f"got {config.crop.shorter_side}"
            )
        if wanted.channels not in (1, 3):
            raise UserError(f"expected a network of 1 or 3 channels for image files, got {wanted.channels}")
        self._wanted, self._device = wanted, torch.device(config.compute.device)
        self._pictures = Pictures(images, config.crop, wanted, config.seed)
        self._workers = worker_count(config.data.workers)
        self._ahead: Ahead | None = None
        self._steps = config.steps

    def follow(self, plan: Plan, part: slice = WHOLE) -> None:
        """Decode ahead what the plan says."""
        if self._workers:
            self._ahead = Ahead(self._pictures, Planned(plan, part, self._steps), self._workers)

    def augmented(self, step: int, samples: Sequence[int], part: slice = WHOLE) -> Tensor:
        """A random crop of each image."""
        request = of_batch(step, samples, part)
        answer = self._pictures[request] if self._ahead is None else self._ahead.answer(request)
        return self._ready([answer])

    def plain_batches(self, samples: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Images as they are seen in evaluation; workers decode while a batch is used."""
        batches = [
            [Request(part.tolist()) for part in batch.split(PART)] for batch in samples.split(batch_size)
        ]
        requests = [request for batch in batches for request in batch]
        workers = min(self._workers, len(requests) // 2)
        answers = (
            received(loader(self._pictures, requests, workers))
            if workers
            else map(self._pictures.__getitem__, requests)
        )
        try:
            for batch in batches:
                yield self._ready([next(answers) for _ in batch])
        finally:
            del answers  # ends the workers now, whoever keeps the traceback of an error

    def _ready(self, answers: Sequence[Answer]) -> Tensor:
        parts = []
        for answer in answers:
            if isinstance(answer.images, str):
                raise DataFileError(
                    f"{answer.images}; put the file right and go on, or leave such images out: with "
                    "--set data.on_broken=skip where a model is trained or evaluated, with --skip-broken where it "
                    "embeds"
                )
            parts.append(torch.as_tensor(answer.images))
        return self._wanted.from_bytes(parts[0] if len(parts) == 1 else torch.cat(parts), self._device)


class Planned:
    """The requests from a step on, asked of the plan one by one as workers get room."""

    def __init__(self, plan: Plan, part: slice, steps: int) -> None:
        self._plan, self._part, self._steps, self.first = plan, part, steps, 0

    def __iter__(self) -> Iterator[Request]:
        """To the last step of the run."""
        for step in range(self.first, self._steps):
            yield of_batch(step, self._plan(step), self._part)


class Ahead:
    """Workers that decode the batches of the next steps."""

    def __init__(self, pictures: Pictures, planned: Planned, workers: int) -> None:
        self._pictures, self._planned = pictures, planned
        self._loader = loader(pictures, planned, workers, persistent=True)
        self._answers: Iterator[Answer] | None = None
        self._next = 0  # step of the answer that comes next
        # This keeps the loader out of any cycle of garbage that this object may end in: there its queues would be
        # closed before the workers are told to end, and each be waited for 5 seconds.
        weakref.finalize(self, [self._loader].clear)

    def answer(self, request: Request) -> Answer:
        """Of any step; fast if it is the one after the last."""
        assert request.step is not None
        for _ in range(2):
            if self._answers is None or self._next != request.step:
                self._planned.first = self._next = request.step
                self._answers = received(self._loader)
            answer = next(self._answers, None)
            self._next += 1
            if answer is not None and answer.samples == request.samples:
                return answer
            self._answers = None  # the plan has changed since: once more, with the one of now
        return self._pictures[request]


def loader(
    pictures: Dataset[Answer], requests: Iterable[Request], workers: int, *, persistent: bool = False
) -> DataLoader[Answer]:
    """Answers in the order of the requests."""
    return DataLoader(
        pictures,
        batch_size=None,  # a request is a batch already
        sampler=cast("Iterable[int]", requests),
        num_workers=workers,
        prefetch_factor=AHEAD,
        persistent_workers=persistent,
        collate_fn=as_it_is,
        worker_init_fn=_leave_ctrl_c_to_the_trainer,
        generator=torch.Generator(),  # not torch's own, whose state belongs to the run
    )


def _leave_ctrl_c_to_the_trainer(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if (
        dist.is_available() and dist.is_initialized()
    ):  # torchrun sends it to its processes and to all that these began
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
