"""Cross-batch memory: a batch meets the images of the last 100 steps."""

from __future__ import annotations

import torch
from own_trainer import make_network, map_at_r

import ccp_fast
from ccp_fast.data import glyphs
from ccp_fast.samplers import MPerClassSampler


def main(steps: int = 300) -> float:
    """Train, and return MAP@R on the test classes."""
    torch.manual_seed(0)
    train = glyphs("train")
    images, labels = train.images.float() / 255, train.labels
    network = make_network()
    loss = ccp_fast.losses.ContrastiveLoss()
    memory = ccp_fast.CrossBatchMemory(size=6400, dim=64, warm_up=steps // 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    sampler = MPerClassSampler(labels, classes_per_batch=16, samples_per_class=4)

    for _ in range(steps):
        batch = torch.tensor(sampler.next_batch())
        value = memory(loss, network(images[batch]), labels[batch])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return map_at_r(network)


if __name__ == "__main__":
    print(f"MAP@R on 500 classes never seen: {main():.3f}")
