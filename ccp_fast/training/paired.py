"""Whether two ways to train differ by more than their seeds: paired, since both had the same seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from scipy import stats

CONFIDENCE = 0.95


class Paired(NamedTuple):
    """Mean difference of pairs, its confidence interval, and the two-sided p of Student's paired t-test."""

    difference: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        """`+.057 [+.043, +.071], p .003`."""
        return f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}], p {self.p:.2g}"


def paired(base: Mapping[int, float], other: Mapping[int, float]) -> Paired | None:
    """`other` − `base`, values by seed, over the seeds of both; None for fewer than two.

    Differences that are all alike (no variance) have an interval of one point, and p = 0, or 1 where they are 0.
    """
    seeds = sorted(base.keys() & other.keys())
    if len(seeds) < 2:
        return None
    differences = [other[seed] - base[seed] for seed in seeds]
    if max(differences) == min(differences):
        same = differences[0]
        return Paired(same, same, same, float(same == 0))
    found = stats.ttest_1samp(differences, 0.0)
    interval = found.confidence_interval(CONFIDENCE)
    mean = sum(differences) / len(differences)
    return Paired(mean, float(interval.low), float(interval.high), float(found.pvalue))
