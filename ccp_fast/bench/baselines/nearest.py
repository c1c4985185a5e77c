"""Nearest neighbours in eager PyTorch and in faiss: distances [M, k]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 1024  # anchors at a time


def blocks_and_topk(anchors: Tensor, references: Tensor, k: int) -> Tensor:
    """‖r‖² − 2a·r in one product a block, ‖a‖² added to the k smallest alone."""
    squares = references.square().sum(1)
    found = []
    for block in anchors.split(BLOCK):
        scores = torch.addmm(squares, block, references.T, alpha=-2)
        smallest = scores.min(1, keepdim=True).values if k == 1 else scores.topk(k, largest=False).values
        found.append((smallest + block.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_())
    return torch.cat(found)


def cdist_and_topk(anchors: Tensor, references: Tensor, k: int) -> Tensor:
    """torch.cdist a block."""
    return torch.cat(
        [torch.cdist(block, references).topk(k, largest=False).values for block in anchors.split(BLOCK)]
    )


def faiss_flat(references: Tensor) -> Callable[[Tensor, Tensor, int], Tensor]:
    """IndexFlatL2, filled beforehand, on as many threads as torch has."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(references.shape[1])
    index.add(references.numpy())

    def search(anchors: Tensor, _: Tensor, k: int) -> Tensor:
        squares = index.search(anchors.numpy(), k)[0]
        return torch.from_numpy(squares).clamp_(min=0).sqrt_()

    return search
