"""Nothing is left behind: a training step that keeps a few bytes costs gigabytes after a day."""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable

import pytest
import torch

import ccp_fast.functional as F


class _Mallinfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in [
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        ]
    ]


def bytes_in_use() -> int:
    """What malloc has handed out and not got back."""
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = _Mallinfo
    gc.collect()
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def loss_step() -> Callable[[], None]:
    embeddings, proxies = torch.randn(16, 8, requires_grad=True), torch.randn(4, 2, 8, requires_grad=True)
    labels = torch.arange(16) % 4

    def step() -> None:
        F.multi_similarity(embeddings, proxies, labels).backward()
        F.triplet(embeddings, None, labels).backward()
        embeddings.grad = proxies.grad = None

    return step


def selection_step() -> Callable[[], None]:
    points, offsets = torch.randn(12, 8), torch.tensor([0, 5, 12])
    return lambda: F.farthest_points(points, 2, offsets=offsets, normalize="ball") and None


def neighbors_step() -> Callable[[], None]:
    anchors, references = torch.randn(12, 8), torch.randn(30, 8)
    return lambda: F.nearest_references(anchors, references, 3, normalize="unit") and None


def projection_step() -> Callable[[], None]:
    now, before, gradients = [torch.randn(9)], [torch.randn(9)], [torch.zeros(9)]
    return lambda: F.projection_grad_(now, before, 0.1, gradients) and None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="counts with glibc's mallinfo2")
@pytest.mark.parametrize("make", [loss_step, selection_step, neighbors_step, projection_step])
def test_a_step_leaves_nothing_behind(make: Callable[[], Callable[[], None]]) -> None:
    step = make()
    for _ in range(200):
        step()
    before = bytes_in_use()
    for _ in range(1000):
        step()
    assert (bytes_in_use() - before) / 1000 < 16
