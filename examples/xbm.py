"""Cross-batch memory: a small batch meets everything that the last 100 steps have seen."""

from __future__ import annotations

import torch
from own_trainer import make_network

import ccp_fast
from ccp_fast.data import glyphs
from ccp_fast.evaluation import retrieval
from ccp_fast.samplers import MPerClassSampler


def main(steps: int = 300) -> float:
    """Train, and return MAP@R on the test classes."""
    torch.manual_seed(0)
    train, test = glyphs("train"), glyphs("test")
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

    network.eval()
    with torch.no_grad():
        embeddings = network(test.images.float() / 255)
    return retrieval(embeddings, test.labels, metrics=("map_at_r",))["map_at_r"]


if __name__ == "__main__":
    print(f"MAP@R on 500 classes never seen: {main():.3f}")
