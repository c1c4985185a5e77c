"""Proxies at a hundred times the network's rate, and alone at first, as Proxy-Anchor was published."""

from __future__ import annotations

import torch
from own_trainer import make_network, map_at_r

import ccp_fast
from ccp_fast.data import glyphs
from ccp_fast.samplers import MPerClassSampler


def main(steps: int = 1000) -> float:
    """Train, and return MAP@R on the test classes."""
    torch.manual_seed(0)
    train = glyphs("train")
    images, labels = train.images.float() / 255, train.labels
    network = make_network()
    loss = ccp_fast.losses.ProxyAnchorLoss(train.num_classes, dim=64)
    groups = [
        {"params": network.parameters(), "weight_decay": 1e-4},
        {"params": loss.parameters(), "lr": 1e-1},  # the proxies: not decayed
    ]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    sampler = MPerClassSampler(labels, classes_per_batch=16, samples_per_class=4)
    warm_up = min(len(labels) // 64, steps // 4)  # an epoch, if there are several

    for step in range(steps):
        network.requires_grad_(step >= warm_up)  # upon a pretrained trunk: all but the new last layer
        batch = torch.tensor(sampler.next_batch())
        value = loss(network(images[batch]), labels[batch])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return map_at_r(network)


if __name__ == "__main__":
    print(f"MAP@R on 500 classes never seen: {main():.3f}")
