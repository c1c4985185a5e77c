"""The reference of k-center: greedy by brute force, segments, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import one_thread, vectors  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ccp_fast import reference


def brute_force(points: Tensor, seeds: Tensor, k: int) -> tuple[list[int], list[float]]:
    """Integer points, one list of centres, nothing remembered."""
    centres, picks, radii = seeds.tolist(), [], []
    everyone = points.tolist()

    def distance(i: int) -> float:
        return min(
            (sum((a - b) ** 2 for a, b in zip(everyone[i], c, strict=True)) for c in centres), default=0.0
        )

    for _ in range(min(k, len(everyone))):
        left = [i for i in range(len(everyone)) if i not in picks]
        score = distance if centres else lambda i: sum(a * a for a in everyone[i])
        pick = max(left, key=lambda i: (score(i), -i))
        picks.append(pick)
        centres = [*centres, everyone[pick]]
        radii.append(max(distance(i) for i in range(len(everyone))) ** 0.5)
    return picks, radii


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_selection_is_greedy(data: st.DataObject) -> None:
    """Ragged segments of integer points with many ties and copies, seeds or none."""
    sizes = data.draw(st.lists(st.integers(0, 7), min_size=1, max_size=4))
    seed_sizes = data.draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    k = data.draw(st.integers(1, 9))
    short = data.draw(st.sampled_from(["repeat", "pad"]))
    random = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    points = torch.randint(-2, 3, (sum(sizes), 2), generator=random).double()
    seeds = torch.randint(-2, 3, (sum(seed_sizes), 2), generator=random).double()
    cuts, seed_cuts = (torch.tensor([0, *n]).cumsum(0) for n in (sizes, seed_sizes))
    indices, radii = reference.farthest_points(
        points, k, offsets=cuts, seeds=seeds, seed_offsets=seed_cuts, short=short
    )
    for s in range(len(sizes)):
        a, b = int(cuts[s]), int(cuts[s + 1])
        picks, covering = brute_force(points[a:b], seeds[seed_cuts[s] : seed_cuts[s + 1]], k)
        missing = k - len(picks)
        filled = [
            picks[i % len(picks)] if picks and short == "repeat" else -1 - a for i in range(len(picks), k)
        ]
        assert (indices[s] - a).tolist() == picks + filled
        assert radii[s].tolist() == pytest.approx(covering + [0.0] * missing)


def test_selection_of_dense_segments() -> None:
    points, seeds = vectors(3, 6, 4), vectors(3, 2, 4, seed=1)
    dense = reference.farthest_points(points, 4, seeds=seeds, normalize="unit")
    flat = reference.farthest_points(
        points.flatten(0, 1), 4, offsets=torch.tensor([0, 6, 12, 18]), seeds=seeds, normalize="unit"
    )
    assert torch.equal(dense.indices, flat.indices)
    assert torch.equal(dense.radii, flat.radii)
    assert (dense.indices // 6 == torch.arange(3)[:, None]).all()


POINTS, DENSE = torch.zeros(7, 5), torch.zeros(3, 2, 5)
NAN = torch.full((7, 5), torch.nan)


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (POINTS, {"k": 0}, "k: expected an integer of at least 1, got 0"),
        (NAN, {}, "points: expected numbers, got NaN in row 0"),
        (POINTS, {"seeds": NAN}, "seeds: expected numbers, got NaN in row 0"),
        (POINTS.long(), {}, "points: expected floating point"),
        (POINTS, {"offsets": torch.tensor([0, 5])}, "offsets: expected a sorted list from 0 to 7"),
        (POINTS, {"offsets": torch.tensor([0, 9, 7])}, "offsets: expected a sorted list from 0 to 7"),
        (
            POINTS,
            {"offsets": torch.tensor([0.0, 7.0])},
            r"offsets: expected int64 of shape \[S \+ 1\], got float32",
        ),
        (DENSE, {"offsets": torch.tensor([0, 6])}, "offsets: expected None for points of shape"),
        (POINTS, {"seed_offsets": torch.tensor([0, 0])}, "seed_offsets: expected None"),
        (DENSE, {"seeds": POINTS}, "seeds: expected 3 segments, as points has, got 1"),
        (POINTS, {"seeds": POINTS[:, :4]}, "seeds: expected vectors of 5 components, got 4"),
        (POINTS, {"short": "cycle"}, 'short: expected "repeat" or "pad"'),
    ],
)
def test_bad_selection(points: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reference.farthest_points(points, **({"k": 2} | options))
