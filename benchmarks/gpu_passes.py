"""A few cases of `ccp-bench gpu`, ours alone, once each: a program for Nsight Compute.

    ncu --cache-control all --kernel-name-base demangled --kernel-name regex:ccp:: python benchmarks/gpu_passes.py

Nsight Compute empties all caches before each kernel, which `ccp-bench gpu` cannot: there a pass begins with a cold L2.
"""

from __future__ import annotations

import argparse

import torch

from ccp_fast.bench.cases import select
from ccp_fast.bench.cases.gpu import gpu_cases

CASES = "proxy_nca-k1+1e6,c2+1e6+bfloat16,multi_similarity+sop+float32,triplet+sop+float32,k-center+sop,projection"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=CASES, metavar="WORDS", help=f"as of ccp-bench gpu ({CASES})")
    parser.add_argument("--size", default="full", choices=("full", "quick", "toy"))
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    for case in select(gpu_cases(options.size, options.device), options.only):
        print(*case.key, case.precision, flush=True)
        inputs = case.inputs()
        steps = case.passes(inputs) if case.passes else (case.implementations[0].prepare(inputs),)
        for step in steps:
            step()
    if options.device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
