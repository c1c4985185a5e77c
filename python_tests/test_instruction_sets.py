"""Kernels that promise the same bits on every processor give them with every instruction set this one has."""

from __future__ import annotations

import os
import subprocess
import sys

import ccp_fast._library

WORK = """
import sys, torch
torch.ops.load_library(sys.argv[1])
ops = torch.ops.ccp_fast
generator = torch.Generator().manual_seed(0)

def write(*tensors):
    for tensor in tensors:
        sys.stdout.buffer.write(tensor.double().numpy().tobytes())

for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for segments, size, dim in ((40, 7, 33), (1, 2500, 64)):  # in a core's cache; streamed by all cores
        offsets = torch.arange(segments + 1) * size
        points = torch.randn(segments * size, dim, generator=generator).to(dtype)
        for normalize in ("none", "unit", "ball"):
            write(*ops.farthest_points(points, offsets, None, None, 5, normalize, False))
    grad, param, previous = (torch.randn(40_013, generator=generator).to(dtype) for _ in range(3))
    # Of small integers, where no instruction rounds.
    anchors, references = (torch.randint(-3, 4, (n, 19), generator=generator).to(dtype) for n in (150, 700))
    write(*ops.nearest_references(anchors, references, 40, "none", False, False))
    write(*ops.nearest_references(anchors, anchors, 1, "none", True, False))
    write(ops.projection_grad_([grad], [param], [previous], 0.01), grad)
"""


def test_every_instruction_set_gives_the_same_bits() -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, ccp_fast._library.PATH],
            env=os.environ | {"CCP_FAST_CPU_CAPABILITY": capability},
            stdout=subprocess.PIPE,
        )
        for capability in ("portable", "avx2", "avx512")
    ]
    outputs = {run.communicate()[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert len(outputs) == 1
    assert len(outputs.pop()) > 100_000
