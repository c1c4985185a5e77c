"""A fused loss in a training loop of one's own, then retrieval on classes never seen."""

from __future__ import annotations

import torch
from torch import nn

from ccp_fast import functional as F
from ccp_fast.data import glyphs
from ccp_fast.evaluation import retrieval
from ccp_fast.samplers import MPerClassSampler


def make_network(dim: int = 64) -> nn.Module:
    """Images [n, 1, 32, 32] to embeddings [n, dim]."""
    return nn.Sequential(
        *(nn.Conv2d(1, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        *(nn.Conv2d(24, 48, 3, stride=2, padding=1), nn.BatchNorm2d(48), nn.ReLU()),
        *(nn.Conv2d(48, 96, 3, stride=2, padding=1), nn.BatchNorm2d(96), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(96 * 4 * 4, dim)),
    )


@torch.no_grad()
def map_at_r(network: nn.Module) -> float:
    """On the test classes."""
    test = glyphs("test")
    embeddings = network.eval()(test.images.float() / 255)
    return retrieval(embeddings, test.labels, metrics=("map_at_r",))["map_at_r"]


def main(steps: int = 300) -> float:
    """Train, and return MAP@R on the test classes."""
    torch.manual_seed(0)
    train = glyphs("train")
    images, labels = train.images.float() / 255, train.labels
    network = make_network()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    sampler = MPerClassSampler(labels, classes_per_batch=32, samples_per_class=4)

    for _ in range(steps):
        batch = torch.tensor(sampler.next_batch())
        # The references are the batch itself here; proxies [C, K, D] or [N, D] with labels stand in the same place.
        loss = F.multi_similarity(network(images[batch]), None, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return map_at_r(network)


if __name__ == "__main__":
    print(f"MAP@R on 500 classes never seen: {main():.3f}")
