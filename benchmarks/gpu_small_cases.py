"""Small cases of every operator, compared with the CPU: a program for compute-sanitizer.

    compute-sanitizer --tool memcheck python benchmarks/gpu_small_cases.py

The cases are those of python_tests/small_cases.py; with CCP_FAST_HOPPER=1 some take the forward pass for Hopper. Ends
with 1 if a result is off.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

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
    options = parser.parse_args()

    cases = mixed([case for case in [*hopper_cases(), *all_cases()] if str(case).startswith(options.only)])
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
    print(f"{done} of {len(cases)} cases on {options.device}, {problems} problems")
    return 1 if problems or not done else 0


def mixed(cases: list[Case], stride: int = 11) -> list[Case]:
    """Neighbours are much alike: in this order those that come first are a sample of all."""
    return [case for first in range(stride) for case in cases[first::stride]]


if __name__ == "__main__":
    sys.exit(main())
