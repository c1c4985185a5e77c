"""Results of the CPU kernels under the instruction set in use; `capabilities.py out.npz` saves them."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

import ccp_fast

# Anchors, proxies a class, classes and dimension: no multiple of any vector's length.
M, K, C, D = 37, 3, 29, 45


def results() -> dict[str, Tensor]:
    """By name; those that start with "exact" promise the same bits for every instruction set."""
    random = torch.Generator().manual_seed(0)
    proxies = torch.randn(C, K, D, generator=random) * 0.3
    points = torch.randn(M, D, generator=random) * 0.3
    labels = torch.randint(0, C, (M,), generator=random)
    found: dict[str, Tensor] = {}
    for name in ("contrastive", "multi_similarity", "proxy_nca", "proxy_anchor", "triplet"):
        a, r = points.clone().requires_grad_(), proxies.clone().requires_grad_()
        loss = getattr(ccp_fast.functional, name)(a, r, labels)
        loss.backward()
        found |= {f"{name}.loss": loss.detach(), f"{name}.anchors": a.grad, f"{name}.references": r.grad}

    pool = torch.randn(300, D, generator=random)
    picked = ccp_fast.functional.farthest_points(pool, 7, offsets=torch.tensor([0, 11, 40, 300]))
    found |= {"exact.indices": picked.indices, "exact.radii": picked.radii}

    parameter, previous = torch.randn(2, 1001, generator=random)
    gradient = torch.zeros_like(parameter)
    penalty = ccp_fast.functional.projection_grad_([parameter], [previous], 0.1, grads=[gradient])
    return found | {"exact.projection": gradient, "exact.penalty": penalty}


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez(sys.argv[1], **{name: value.numpy() for name, value in results().items()})
    print(ccp_fast.info()["cpu_capability"])
