"""Hard class mining: batches of classes that lie near each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from torch import Tensor

from ccp_fast._checks import check_one_of, describe

from ._deck import Deck
from ._nearest_classes import Search, nearest_classes
from .representative import RepresentativeSampler

_SEED_CLASS = 3  # what a random stream is for; 0 to 2 are the other samplers'
_AHEAD = 64  # batches whose nearest classes are searched for at once


class HardClassSampler(RepresentativeSampler):
    """Batch sampler: a seed class with its P − 1 nearest classes; the layout is `RepresentativeSampler`'s.

    Seeds come in shuffled passes over all classes. Distances are Euclidean between one vector per class, such
    as the embeddings of all representatives or the proxies, normalised as the loss sees them (with one proxy a class
    ``loss.proxies[:, 0]``). They are handed over on a schedule of the trainer's own:

        if b % sampler.lifetime == 0:
            sampler.update(embed(sampler.representatives(b)))
        batch = sampler.next_batch()

    The search is exact; of classes at equal distances the lower class number is nearer. Before the first
    `update` classes come in turn, as in `RepresentativeSampler`.

    Batch number b is a function of (labels, arguments, seed, b) and the vectors of the last update. The state
    has these too: a resumed run draws the same batches, to the bit. Batches that a DataLoader with workers drew
    ahead of an update go by the vectors before it, which no state tells: draw them yourself, or use no workers.

    Args:
        labels, classes_per_batch, samples_per_class, batches_per_epoch, seed: see `RepresentativeSampler`.
        lifetime: batches for which a representative is kept. With a loss within the batch it matters little
            which samples come first; 1 then.
        search: who looks for candidates, which are then ranked exactly: "torch", this package's operator, or "faiss"
            if it is installed (``pip install 'ccp-fast[faiss]'``). The batches are the same.

    Raises:
        ValueError: as `RepresentativeSampler`, and for an unknown search.

    Source: arXiv 1907.07585, section on hard class mining.
    """

    def __init__(
        self,
        labels: Tensor | Sequence[int],
        classes_per_batch: int,
        samples_per_class: int,
        *,
        lifetime: int = 1,
        batches_per_epoch: int | None = None,
        seed: int = 0,
        search: Search = "torch",
    ) -> None:
        check_one_of("search", search, ("torch", "faiss"))
        if search == "faiss" and find_spec("faiss") is None:
            raise ValueError('search: expected "torch" where faiss is not installed, got "faiss"')
        self.search = search
        self._vectors: Tensor | None = None  # [C, D], never written to
        self._near: dict[int, list[list[int]]] = {}  # classes of the batches of one block, by its number
        super().__init__(
            labels,
            classes_per_batch,
            samples_per_class,
            lifetime=lifetime,
            batches_per_epoch=batches_per_epoch,
            seed=seed,
        )

    def update(self, class_vectors: Tensor) -> None:
        """Distances from now on: class_vectors [C, D], a vector for each class by class number.

        Raises:
            ValueError: another shape, or not floating point and finite.
        """
        self._vectors = self._checked(class_vectors)
        self._near = {}

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Integers, and the tensor ``class_vectors`` [C, D], None before the first update."""
        return {**super().state_dict(consumed), "class_vectors": self._vectors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; ValueError if it does not fit, and nothing is changed then."""
        vectors = state.get("class_vectors")
        if vectors is not None:
            vectors = self._checked(vectors)
        super().load_state_dict(state)
        self._vectors = vectors

    def _visits(self, number: int) -> list[tuple[int, int]]:
        if self._vectors is None:
            return super()._visits(number)
        block, place = divmod(number, _AHEAD)
        if block not in self._near:
            first = block * _AHEAD
            seeds = [int(self._seed_deck.deal(n)[0]) for n in range(first, first + _AHEAD)]
            self._near = {block: nearest_classes(self._vectors, seeds, self.classes_per_batch, self.search)}
        # How often a class was visited depends on the vectors so far: the number of the batch stands for it.
        return [(c, number) for c in self._near[block][place]]

    def _shuffle(self, seed: int) -> None:
        super()._shuffle(seed)
        self._seed_deck = Deck(len(self._classes), 1, seed, (_SEED_CLASS,))
        self._near = {}

    def _checked(self, vectors: Tensor) -> Tensor:
        """A copy."""
        count = len(self._classes)
        if vectors.dim() != 2 or len(vectors) != count or not vectors.is_floating_point():
            raise ValueError(
                f"class_vectors: expected floating point of shape [{count}, D], got {describe(vectors)}"
            )
        wrong = (~vectors.isfinite().all(1)).nonzero()
        if len(wrong):
            raise ValueError(f"class_vectors: expected finite numbers, got others in row {int(wrong[0])}")
        return vectors.detach().clone()
