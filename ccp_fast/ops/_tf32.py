"""Whether a GPU may round float32 factors to tf32: what torch's own matrix products go by."""

from __future__ import annotations

import torch


def allow_tf32() -> bool:
    """By whichever of torch's settings it was allowed, the last of them.

    `torch.backends.cuda.matmul.fp32_precision` is what cuBLAS is told since torch 2.9. `torch.backends.fp32_precision`
    decides where it was not set; `torch.set_float32_matmul_precision` and `torch.backends.cuda.matmul.allow_tf32` set
    it. Both of these older ones raise RuntimeError when they are read after a newer one was set.
    """
    allowed: bool = torch.backends.cuda.matmul.fp32_precision == "tf32"
    return allowed


# Dynamo cannot trace the property, so its value is a constant of the compiled code. Dynamo's guard on torch's global
# state holds this setting and has the code compiled again when it changes. The mark is what
# `torch.compiler.assume_constant_result` sets, which would import all of dynamo for it: seconds at every start.
allow_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]
