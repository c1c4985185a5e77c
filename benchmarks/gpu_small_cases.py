"""Small cases of every operator, compared with the CPU: a program for compute-sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/gpu_small_cases.py

The cases are those of python_tests/small_cases.py; with CCP_FAST_HOPPER=1 some take the forward pass for Hopper. One of
each operator and loss in each type comes first, then the others, mixed. Ends with 1 if a result is off, and if the time
was over before each had its turn, or before as many as --at-least asks for.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

# Each tensor gets memory of its own, so that an access outside of it is outside of an allocation.
os.environ.setdefault("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python_tests"))

import torch
from small_cases import Case, all_cases, hopper_cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="where to run (cuda)")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose name begins so")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no case after that")
    parser.add_argument("--at-least", type=float, default=0.0, metavar="PERCENT", help="of the cases (0)")
    options = parser.parse_args()

    hopper = hopper_cases() if os.environ.get("CCP_FAST_HOPPER") == "1" else []
    groups = [("hopper", hopper), *((type(case).__name__, [case]) for case in all_cases())]
    named = [(kind, case) for kind, cases in groups for case in cases if str(case).startswith(options.only)]
    first, others = one_of_each(named)
    cases = first + mixed(others)
    torch.set_num_threads(1)  # the CPU's side is tiny
    start, done, problems = time.perf_counter(), 0, 0
    for case in cases:
        if time.perf_counter() - start > options.seconds:
            break
        try:
            found = case.problems(options.device)
        except RuntimeError as error:
            found = [f"{case}: {error}"]
        for problem in found:
            print(problem, flush=True)
        done, problems = done + 1, problems + len(found)
    share = 100 * done / max(1, len(cases))
    enough = done >= max(1, len(first)) and share >= options.at_least
    print(
        f"{done} of {len(cases)} cases ({share:.0f} %) on {options.device}, "
        f"{min(done, len(first))} of {len(first)} losses and operators, {problems} problems"
        + ("" if enough else f"; TOO FEW: expected all of these and {options.at_least:g} % of the cases")
    )
    return 1 if problems or not enough else 0


def one_of_each(cases: list[tuple[str, Case]]) -> tuple[list[Case], list[Case]]:
    """The first of each kind of case and loss, regime or k, with anchors of each type; and all the others."""
    found: dict[tuple[Any, ...], Case] = {}
    others = []
    for kind, case in cases:
        name = next(getattr(case, field) for field in ("loss", "name", "k", "dtype") if hasattr(case, field))
        if found.setdefault((kind, name, *getattr(case, "dtypes", ())[:1]), case) is not case:
            others.append(case)
    return list(found.values()), others


def mixed(cases: list[Case], stride: int = 11) -> list[Case]:
    """Neighbours are much alike: in this order those that come first are a sample of all."""
    return [case for first in range(stride) for case in cases[first::stride]]


if __name__ == "__main__":
    sys.exit(main())
