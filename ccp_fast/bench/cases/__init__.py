"""All cases, in the order they are shown. Each family is a module with `cases(size)`; `gpu` puts them together anew."""

from __future__ import annotations

from collections.abc import Sequence

from ccp_fast.bench.case import Case, Size
from ccp_fast.bench.cases import evaluation, k_center, losses, neighbors, projection

_FAMILIES = (losses, k_center, projection, neighbors, evaluation)


def all_cases(size: Size) -> list[Case]:
    """Every case on the CPU, its inputs not yet made."""
    return [case for family in _FAMILIES for case in family.cases(size)]


def find(key: tuple[str, str, str], size: Size) -> Case:
    """The case of a key at a size."""
    return next(case for case in all_cases(size) if case.key == key)


def select(cases: Sequence[Case], only: str | None) -> list[Case]:
    """Cases that one of the comma-separated entries fits; None: all.

    An entry is a family, name, setting or precision, or several joined by + that must all fit. Raises ValueError
    naming the words that fit no case.
    """
    if only is None:
        return list(cases)
    entries = [{word.strip() for word in entry.split("+")} for entry in only.split(",")]
    known = {word for case in cases for word in case.words}
    unknown = sorted(set().union(*entries) - known)
    if unknown:
        raise ValueError(f"--only: expected some of {', '.join(sorted(known))}, got {', '.join(unknown)}")
    return [case for case in cases if any(entry <= case.words for entry in entries)]
