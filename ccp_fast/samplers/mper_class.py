"""Batches of P classes with M samples each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from ccp_fast._checks import at_least

from ._classes import Classes
from ._deck import Deck

_CLASS_ORDER, _SAMPLE_ORDER = 0, 1  # what a random stream is for
_DECKS = 1 << 16  # sample decks kept; they are cheap to open again


class MPerClassSampler(Sampler[list[int]]):
    """Batch sampler: ``classes_per_batch`` different classes with ``samples_per_class`` samples each.

    Classes come in shuffled passes: each appears once before any appears again, so every class has the same
    weight whatever its size. The samples of a class come in shuffled passes as well, from one visit to the
    next. A batch holds a sample twice only where the class has fewer than ``samples_per_class``; then its
    samples are repeated as evenly as possible.

    Batch number b is a function of (labels, arguments, seed, b) and of nothing else; the state is the number
    of the next batch. Use as ``DataLoader(dataset, batch_sampler=sampler)`` or call ``next_batch`` in a loop
    of your own.

    A DataLoader with workers draws batches ahead of the trainer, so the sampler's own position is not what
    was trained on: pass ``state_dict(consumed=n)`` with n the batches trained on since the sampler was new
    (the global step, where one batch is one step).

    Args:
        labels: [N] int64, any values.
        classes_per_batch: P, at most the number of classes.
        samples_per_class: M.
        batches_per_epoch: length of one iteration; None: it never ends. An iteration that resumes inside an
            epoch yields the rest of that epoch.
        seed: at least 0.

    Yields:
        P·M sample numbers, class by class.

    Raises:
        ValueError: labels empty or not int64 [N], or a count out of range.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        classes_per_batch: int,
        samples_per_class: int,
        *,
        batches_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        self._classes = Classes(labels)
        self.classes_per_batch = at_least("classes_per_batch", classes_per_batch, 1)
        self.samples_per_class = at_least("samples_per_class", samples_per_class, 1)
        if classes_per_batch > len(self._classes):
            raise ValueError(
                f"classes_per_batch: expected at most {len(self._classes)}, the number of classes,"
                f" got {classes_per_batch}"
            )
        self.batches_per_epoch = (
            None if batches_per_epoch is None else at_least("batches_per_epoch", batches_per_epoch, 1)
        )
        self.position = 0  # number of the next batch
        self._shuffle(at_least("seed", seed, 0))

    @property
    def classes(self) -> Tensor:
        """[C] int64: the labels, ascending."""
        return torch.from_numpy(self._classes.labels.copy())

    def batch(self, number: int) -> list[int]:
        """Batch ``number``, P·M sample numbers; the position stays."""
        return [int(i) for c, visit in self._visits(number) for i in self._samples(c, visit)]

    def next_batch(self) -> list[int]:
        """The batch at the current position, which moves on by one."""
        self.position += 1
        return self.batch(self.position - 1)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches from the current position to the end of the epoch, or without end."""
        length = self.batches_per_epoch
        end = None if length is None else (self.position // length + 1) * length
        while end is None or self.position < end:
            yield self.next_batch()

    def __len__(self) -> int:
        """Batches in an epoch."""
        if self.batches_per_epoch is None:
            raise TypeError(f"{type(self).__name__} has no length: batches_per_epoch was not given")
        return self.batches_per_epoch

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """The state, plain integers; ``consumed``: the number of batches trained on, where drawn ahead."""
        position = self.position if consumed is None else at_least("consumed", consumed, 0)
        return {"seed": self.seed, "position": position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken, with its seed.

        Raises:
            ValueError: the state is damaged, or of other labels or arguments; nothing is changed then.
        """
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"{name}: expected {value} as in this sampler, got {state.get(name)} in the state"
                )
        seed = at_least("seed", state.get("seed"), 0)
        self.position = at_least("position", state.get("position"), 0)
        self._shuffle(seed)

    def _identity(self) -> dict[str, int]:
        return {
            "classes_per_batch": self.classes_per_batch,
            "samples_per_class": self.samples_per_class,
            "labels_crc32": self._classes.checksum,
        }

    def _shuffle(self, seed: int) -> None:
        self.seed = seed
        self._class_deck = Deck(len(self._classes), self.classes_per_batch, seed, (_CLASS_ORDER,))
        self._sample_decks: dict[int, Deck] = {}

    def _visits(self, number: int) -> list[tuple[int, int]]:
        """The classes of a batch, each with the number of the hand that its deck of samples deals."""
        visits = np.arange(number * self.classes_per_batch, (number + 1) * self.classes_per_batch)
        visits //= len(self._classes)  # how often each of the classes was visited before: once in every pass
        return list(zip(self._class_deck.deal(number).tolist(), visits.tolist(), strict=True))

    def _members(self, class_number: int) -> NDArray[np.int64]:
        start, stop = self._classes.offsets[class_number : class_number + 2]
        return self._classes.samples[start:stop]

    def _samples(self, class_number: int, visit: int) -> NDArray[np.int64]:
        return self._deal(class_number, self._members(class_number), self.samples_per_class, visit)

    def _deal(
        self, class_number: int, samples: NDArray[np.int64], count: int, visit: int
    ) -> NDArray[np.int64]:
        """`count` of a class's samples: all of them as often as that takes, and for the rest its deck's hand."""
        repeats, rest = divmod(count, len(samples))
        parts = [samples] * repeats
        if rest:
            parts.append(samples[self._sample_deck(class_number, len(samples), rest).deal(visit)])
        return np.concatenate(parts)

    def _sample_deck(self, class_number: int, size: int, hand: int) -> Deck:
        if class_number not in self._sample_decks:
            if len(self._sample_decks) >= _DECKS:
                self._sample_decks.clear()
            self._sample_decks[class_number] = Deck(size, hand, self.seed, (_SAMPLE_ORDER, class_number))
        return self._sample_decks[class_number]
