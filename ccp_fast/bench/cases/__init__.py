"""All cases, in the order they are shown. Each family is a module with `cases(size)`."""

from __future__ import annotations

from collections.abc import Sequence

from ccp_fast.bench.case import Case, Size
from ccp_fast.bench.cases import evaluation, k_center, losses, projection

_FAMILIES = (losses, k_center, projection, evaluation)


def all_cases(size: Size) -> list[Case]:
    """Every case, its inputs not yet made."""
    return [case for family in _FAMILIES for case in family.cases(size)]


def find(key: tuple[str, str, str], size: Size) -> Case:
    """The case of a key at a size."""
    return next(case for case in all_cases(size) if case.key == key)


def select(cases: Sequence[Case], only: str | None) -> list[Case]:
    """Cases whose family, name or setting is in the comma-separated list; None: all.

    Raises ValueError naming the words that fit no case.
    """
    if only is None:
        return list(cases)
    words = {word.strip() for word in only.split(",")}
    known = sorted({part for case in cases for part in case.key})
    unknown = sorted(words - set(known))
    if unknown:
        raise ValueError(f"--only: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    return [case for case in cases if words & set(case.key)]
