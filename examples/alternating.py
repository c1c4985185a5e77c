"""Alternating projections onto feasible sets with hard class mining, in a loop of one's own.

python examples/alternating.py            classes are near each other by their representatives
python examples/alternating.py --proxies  by the proxies of a loss that owns some, without the projections
"""

from __future__ import annotations

import sys

import torch
from own_trainer import make_network, map_at_r
from torch.nn.functional import normalize

import ccp_fast
from ccp_fast.data import glyphs
from ccp_fast.samplers import HardClassSampler


def main(steps: int = 300) -> float:
    """Train, and return MAP@R on the test classes."""
    torch.manual_seed(0)
    train = glyphs("train")
    images, labels = train.images.float() / 255, train.labels
    network = make_network()
    loss = ccp_fast.losses.MultiSimilarityLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    projection = ccp_fast.Projection(network, lam=2e-4).attach(optimizer)
    sampler = HardClassSampler(labels, classes_per_batch=16, samples_per_class=4, lifetime=20)
    first = sampler.classes_per_batch  # of a batch are the representatives

    for step in range(steps):
        if step % sampler.lifetime == 0:  # other representatives: the next set is reached from here
            projection.snapshot_()
            if step >= steps // 4:  # before, all classes are alike to the network
                with torch.no_grad():
                    of_classes = network.eval()(images[sampler.representatives(step)])
                network.train()
                sampler.update(normalize(of_classes, dim=1))  # as the loss compares them
        batch = torch.tensor(sampler.next_batch())
        embeddings, classes = network(images[batch]), labels[batch]
        value = loss(embeddings[first:], classes[first:], embeddings[:first], classes[:first])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return map_at_r(network)


def by_proxies(steps: int = 300) -> float:
    """Hard class mining alone, around a loss that owns a proxy of each class: no images are embedded for it."""
    torch.manual_seed(0)
    train = glyphs("train")
    images, labels = train.images.float() / 255, train.labels
    network = make_network()
    loss = ccp_fast.losses.MultiSimilarityLoss(num_classes=train.num_classes, dim=64)
    groups = [{"params": network.parameters()}, {"params": loss.parameters(), "lr": 0.1}]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    sampler = HardClassSampler(labels, classes_per_batch=16, samples_per_class=4)

    for step in range(steps):
        if step >= steps // 2 and step % 20 == 0:
            sampler.update(normalize(loss.proxies[:, 0], dim=1))
        batch = torch.tensor(sampler.next_batch())
        embeddings, classes = network(images[batch]), labels[batch]
        value = loss.pairs(embeddings, classes) + loss(
            embeddings, classes
        )  # in the batch, and to all proxies
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return map_at_r(network)


if __name__ == "__main__":
    trained = by_proxies() if "--proxies" in sys.argv else main()
    print(f"MAP@R on 500 classes never seen: {trained:.3f}")
