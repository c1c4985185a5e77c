"""Losses and gradients under the instruction set in use; `capabilities.py out.npz` saves them."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

import ccp_fast

# Anchors, proxies a class, classes and dimension: no multiple of any vector's length.
M, K, C, D = 37, 3, 29, 45


def results() -> dict[str, Tensor]:
    """Losses and their gradients, by name."""
    random = torch.Generator().manual_seed(0)
    proxies = torch.randn(C, K, D, generator=random) * 0.3
    points = torch.randn(M, D, generator=random) * 0.3
    labels = torch.randint(0, C, (M,), generator=random)
    found: dict[str, Tensor] = {}
    for name in (
        "contrastive",
        "margin_softmax",
        "multi_similarity",
        "proxy_anchor",
        "proxy_nca",
        "soft_triple",
        "triplet",
    ):
        a, r = points.clone().requires_grad_(), proxies.clone().requires_grad_()
        loss = getattr(ccp_fast.functional, name)(a, r, labels)
        loss.backward()
        found |= {f"{name}.loss": loss.detach(), f"{name}.anchors": a.grad, f"{name}.references": r.grad}
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez(sys.argv[1], **{name: value.numpy() for name, value in results().items()})
    print(ccp_fast.info()["cpu_capability"])
