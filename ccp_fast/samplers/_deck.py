"""An endless shuffled deck, dealt in hands without repeats, that can be opened at any hand."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ._random import permutation


class Deck:
    """The items 0..size-1 in endless shuffled passes, cut into hands of ``hand`` <= size items.

    Every pass holds each item once, and no hand holds an item twice, also where it spans two passes. Hand
    number b is a function of (seed, place, b).
    """

    def __init__(self, size: int, hand: int, seed: int, place: tuple[int, ...]) -> None:
        self.size, self.hand, self._seed, self._place = size, hand, seed, place
        self._passes: dict[int, NDArray[np.int64]] = {}  # the last two used

    def deal(self, number: int) -> NDArray[np.int64]:
        """The items of one hand."""
        pass_number, start = divmod(number * self.hand, self.size)
        items = self._pass(pass_number)[start : start + self.hand]
        missing = self.hand - len(items)
        return np.concatenate([items, self._pass(pass_number + 1)[:missing]]) if missing else items

    def _pass(self, number: int) -> NDArray[np.int64]:
        if number not in self._passes:
            recent = {n: order for n, order in self._passes.items() if n == number - 1}
            self._passes = {**recent, number: self._order(number)}
        return self._passes[number]

    def _order(self, number: int) -> NDArray[np.int64]:
        """Order of a pass: shuffled, then mended against the end of the pass before.

        That pass was mended as well, so this goes back to one of known order: the last pass that began with a
        new hand, for it needs no mending. With room for two hands in a pass, mending at its front does not
        reach its end, and one step back is enough.
        """
        order = self._passes.get(number - 1)
        first = number - 1
        if order is None:
            first = number - number % (self.hand // math.gcd(self.size, self.hand))
            if self.size >= 2 * self.hand:
                first = max(first, number - 1)
            order = self._shuffled(first)
        for n in range(first + 1, number + 1):
            order = self._mended(self._shuffled(n), order, begun=n * self.size % self.hand)
        return order

    def _shuffled(self, number: int) -> NDArray[np.int64]:
        return permutation(self._seed, (*self._place, number), self.size)

    def _mended(self, order: NDArray[np.int64], before: NDArray[np.int64], begun: int) -> NDArray[np.int64]:
        """Put off the items that the pass before gave to the hand that both share, ``begun`` of its items."""
        if begun:
            front = order[: self.hand]
            clash = np.isin(front, before[-begun:])
            order[: self.hand] = np.concatenate([front[~clash], front[clash]])
        return order
