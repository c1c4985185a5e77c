"""A script for pytorch-metric-learning moved over: what a line was is said above it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from own_trainer import make_network
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

# from pytorch_metric_learning import losses, miners, samplers
from ccp_fast import losses, samplers
from ccp_fast.data import ImageSet, glyphs

# from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from ccp_fast.evaluation import retrieval


def dataset(images: ImageSet) -> TensorDataset:
    """Of images in memory."""
    return TensorDataset(images.images.float() / 255, images.labels)


def main(steps: int = 300) -> float:
    """Train, and return MAP@R on the test classes."""
    torch.manual_seed(0)
    train, test = glyphs("train"), glyphs("test")
    network = make_network()
    # miner = miners.MultiSimilarityMiner()
    # loss = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    loss = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)  # over all pairs: there are no miners
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    # sampler = samplers.MPerClassSampler(train.labels, m=4, batch_size=128)
    # loader = DataLoader(dataset(train), batch_size=128, sampler=sampler)
    sampler = samplers.MPerClassSampler(train.labels, 128 // 4, 4, batches_per_epoch=steps)
    loader = DataLoader(dataset(train), batch_sampler=sampler)
    for images, labels in loader:
        # embeddings = network(images)
        # value = loss(embeddings, labels, miner(embeddings, labels))
        value = loss(network(images), labels)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    with torch.no_grad():
        embeddings = network.eval()(test.images.float() / 255)
    # calculator = AccuracyCalculator(include=("mean_average_precision_at_r",), k="max_bin_count")
    # return calculator.get_accuracy(embeddings, test.labels)["mean_average_precision_at_r"]
    return retrieval(embeddings, test.labels, metrics=("map_at_r",))["map_at_r"]


def with_old_proxies(state: Mapping[str, Tensor], per_class: int = 3) -> losses.MarginSoftmaxLoss:
    """A loss that owns proxies goes on with those it had: `state` is the old loss's `state_dict()`."""
    dim, columns = state["W"].shape
    # loss = losses.SubCenterArcFaceLoss(num_classes=classes, embedding_size=dim, margin=28.6, sub_centers=3)
    # loss.load_state_dict(state)
    radians = 28.6 * torch.pi / 180
    loss = losses.MarginSoftmaxLoss(columns // per_class, dim, per_class, kind="arcface", margin=radians)
    loss.proxies.data = state["W"].t().reshape(loss.proxies.shape).clone()
    return loss


if __name__ == "__main__":
    print(f"MAP@R on 500 classes never seen: {main():.3f}")
