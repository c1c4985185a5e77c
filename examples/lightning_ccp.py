"""CCP in PyTorch Lightning: a callback chooses the proxies, adds the proximal term and ends the sub-problems.

pip install 'ccp-fast[lightning]'
"""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from own_trainer import make_network
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ccp_fast
from ccp_fast.data import ImageSet, glyphs
from ccp_fast.evaluation import retrieval
from ccp_fast.integrations.lightning import AlternatingProjectionsCallback
from ccp_fast.samplers import ClassPoolSampler, MPerClassSampler

DIM = 64


class Embedder(pl.LightningModule):
    """Network, proxies, and the algorithm around them."""

    def __init__(self, num_classes: int, warm_start: int, project_every: int) -> None:
        super().__init__()
        self.network = make_network(DIM)
        self.criterion = ccp_fast.losses.ContrastiveLoss(
            num_classes=num_classes, dim=DIM, proxies_per_class=4
        )
        self.ccp = ccp_fast.AlternatingProjections(
            self.network,
            self.criterion,
            pool_size=8,
            lam=2e-4,
            warm_start=warm_start,
            project_every=project_every,
        )
        self.seen: list[tuple[Tensor, Tensor]] = []  # in this validation

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        return self.ccp.loss(self.network(images), labels)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        self.seen.append((self.network(images), labels))

    def on_validation_epoch_end(self) -> None:
        embeddings, labels = (torch.cat(parts) for parts in zip(*self.seen, strict=True))
        self.seen.clear()
        self.log("val_map_at_r", retrieval(embeddings, labels, metrics=("map_at_r",))["map_at_r"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def dataset(images: ImageSet) -> TensorDataset:
    return TensorDataset(images.images.float() / 255, images.labels)


def main(steps: int = 600) -> float | None:
    """Train half of the steps with the plain loss, then with CCP; returns the best MAP@R in validation."""
    torch.manual_seed(0)
    train, val = glyphs("train"), glyphs("val")
    every = max(1, steps // 6)
    embedder = Embedder(train.num_classes, warm_start=steps // 2, project_every=every)
    pools = ClassPoolSampler(train.labels, pool_size=8)

    def images_of(indices: Tensor) -> Tensor:
        return train.images[indices].float() / 255

    callback = AlternatingProjectionsCallback(
        embedder.ccp,
        embed=lambda k: ccp_fast.embed_pool(embedder.network, images_of, pools.pool(k)),
        monitor="val_map_at_r",
    )
    trainer = pl.Trainer(
        max_steps=steps,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        callbacks=[callback],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    sampler = MPerClassSampler(train.labels, classes_per_batch=16, samples_per_class=4, batches_per_epoch=100)
    trainer.fit(
        embedder,
        DataLoader(dataset(train), batch_sampler=sampler),
        DataLoader(dataset(val), batch_size=200),
    )
    return embedder.ccp.restore_best()


if __name__ == "__main__":
    print(f"MAP@R on the 200 validation classes that picked the step: {main():.3f}")
