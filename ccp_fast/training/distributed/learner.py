"""Everything that learns over several processes, and one step of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ccp_fast.alternating.weights import to_shards
from ccp_fast.ccp import AlternatingProjections, EmbeddedPool
from ccp_fast.data import EvaluationSet, ImageSource
from ccp_fast.distributed import (
    ShardedLoss,
    ShardedProxies,
    checkpoint,
    load_network_state,
    network_state,
    retrieval,
)
from ccp_fast.distributed.pool import own_pool
from ccp_fast.distributed.proxies import even_shards
from ccp_fast.samplers import ClassPoolSampler, MPerClassSampler
from ccp_fast.training.clock import PhaseClock
from ccp_fast.training.config import with_settings
from ccp_fast.training.data import TrainingData
from ccp_fast.training.distributed.limits import check_sampling, check_settings
from ccp_fast.training.distributed.subproblems import of_all_classes, spread_over_all
from ccp_fast.training.errors import UserError
from ccp_fast.training.measure import recall_at
from ccp_fast.training.methods.base import batch_errors
from ccp_fast.training.methods.ccp import projections
from ccp_fast.training.model import build_network, embed
from ccp_fast.training.objective import build_loss
from ccp_fast.training.optimizer import ProxyRate, proxy_rate, warm_up_steps
from ccp_fast.training.schedule import rate_factor
from ccp_fast.training.settings import Config
from ccp_fast.training.workers import worker_count

Wrapper = Literal["ddp", "fsdp"]
_PICTURES = 256  # that pass through the network at a time in evaluation


class DistributedLearner:
    """Network, sharded proxies, an optimizer of each, and CCP if it is the method. `connect` makes it whole.

    Args:
        config: of the run.
        images: to train on.
        sample_rate: part of the classes in a step.
        pretrained: as of `ccp_fast.training.learner.Learner`.

    Sends no messages yet, so that all ranks can agree on what is wrong: UserError.
    """

    def __init__(
        self, config: Config, images: ImageSource, sample_rate: float, *, pretrained: bool = True
    ) -> None:
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        check_settings(config, self.ranks)
        self.config = _with_own_workers(config)
        torch.manual_seed(config.seed)  # the same weights on every rank
        self.model = build_network(config.model, config.compute, pretrained=pretrained)
        self.clock = PhaseClock(next(self.model.parameters()).device)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.data = TrainingData(images, self.config, self.model.input)
        batch = config.batch
        with batch_errors():
            self.sampler = MPerClassSampler(self.data.labels, batch.classes, batch.samples, seed=config.seed)
        self._part = slice(self.rank, None, self.ranks)  # of each batch
        self.data.follow(self.sampler.batch, self._part)
        self._pools = ClassPoolSampler(self.data.labels, config.ccp.pool_size, seed=config.seed)

        like = build_loss(config, 2, proxies=config.method == "ccp")  # of two classes
        check_sampling(like, sample_rate)
        # A loss within the batch has no proxies; those of a single class that nothing moves stand for none.
        classes, per_class = (1, 1) if like.proxies is None else (images.num_classes, like.proxies.shape[1])
        self.proxies = ShardedProxies(
            classes, per_class, config.model.dim, sample_rate=sample_rate, seed=config.seed
        )
        self.loss = ShardedLoss(like.function, self.proxies, **like.options)
        self._within_batch = like.proxies is None
        self._rate = ProxyRate(1.0, 0.0) if self._within_batch else proxy_rate(config)
        self.warm_up = warm_up_steps(config, self._rate, len(images))

    def connect(self, wrapper: Wrapper) -> None:
        """Wrap the network and make the optimizers; all ranks together."""
        self.wrapped: nn.Module = self.model
        if wrapper == "fsdp":
            self.model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload] # FSDP2 takes no other
            fully_shard(self.model, mesh=init_device_mesh("cpu", (self.ranks,)))  # in place
        else:
            self.wrapped = DistributedDataParallel(self.model)
        c, rate = self.config.optimizer, self._rate
        kind = torch.optim.RAdam if c.name == "radam" else torch.optim.Adam
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.of_network = kind(weights, lr=c.lr, betas=c.betas, weight_decay=c.weight_decay)
        self.of_proxies = kind([self.proxies.proxies], lr=c.lr * rate.factor, betas=c.betas)
        self._rates = ((self.of_network, c.lr), (self.of_proxies, c.lr * rate.factor))
        if self.proxies.sample_rate < 1:
            self.proxies.attach(self.of_proxies)
        self.ccp: AlternatingProjections | None = None
        if self.config.method == "ccp":
            self.ccp = projections(self.config, self.model, self.loss)
            self.ccp.attach(self.of_network, self.of_proxies)

    @property
    def lr(self) -> float:
        """Of the network, in the last step."""
        return float(self.of_network.param_groups[0]["lr"])

    def train_step(self, step: int) -> float:
        """This rank's part of a batch; returns the loss of the whole."""
        if self.ccp is not None and self.ccp.due:
            with self.clock("reinitialisation"):
                self._choose_proxies(self.ccp)
        factor = rate_factor(self.config.optimizer.schedule, step, self.config.steps)
        for optimizer, rate in self._rates:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        # Dropout: another on every rank and in every step, the same where a run went on.
        torch.manual_seed((self.config.seed * 0x9E3779B97F4A7C15 + step * self.ranks + self.rank) % 2**63)
        with self.clock("data"):
            images, labels = self.data.batch(step, self.sampler.batch(step), self._part)
        with self.clock("forward"):
            embeddings = self.wrapped(images)
        with self.clock("loss"):
            loss = self._loss(embeddings, labels)
        with self.clock("backward"):
            loss.backward()
        with self.clock("optimizer"):
            for optimizer, _ in self._rates:
                if optimizer is self.of_proxies or step >= self.warm_up:
                    optimizer.step()
                optimizer.zero_grad()
            value = float(loss.detach())  # which waits for all that a GPU still has to do
        return value

    def _loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        if self.ccp is not None:
            return self.ccp.loss(embeddings, labels)
        value: Tensor = (self.loss.pairs if self._within_batch else self.loss)(embeddings, labels)
        return value

    def _choose_proxies(self, ccp: AlternatingProjections) -> None:
        """k-center where the class lives; what is recorded of it is of all classes."""
        self.agree_on_buffers()

        def pool(k: int) -> EmbeddedPool:
            own = own_pool(self._pools.pool(k), self.proxies)
            return EmbeddedPool(self._embed(self.data, own.indices), own.offsets)

        ccp.project(pool)
        ccp.history[-1] = of_all_classes(ccp.history[-1], len(self.proxies.proxies), self.proxies.comm)

    @property
    def proxy_spread(self) -> float | None:
        """Mean distance between two proxies of a class, over all ranks; None without CCP or before it begins."""
        return None if self.ccp is None else spread_over_all(self.ccp, self.proxies.comm)

    @torch.no_grad()
    def agree_on_buffers(self) -> None:
        """Running statistics become the mean over the ranks."""
        for buffer in self.model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.ranks

    def evaluate(self, images: EvaluationSet, metrics: tuple[str, ...]) -> dict[str, float]:
        """Of the samples of all ranks, each embedding and ranking its share."""
        query, labels = self._embed_share(images.query)
        gallery, gallery_labels = (
            (None, None) if images.gallery is None else self._embed_share(images.gallery)
        )
        return retrieval(
            query,
            labels,
            gallery,
            gallery_labels,
            metrics,
            ks=recall_at(self.config),
            normalize=self.loss.normalize,
            kmeans=self.config.evaluation.kmeans,
        )

    def _embed_share(self, images: ImageSource) -> tuple[Tensor, Tensor]:
        """Consecutive images, so that those of all ranks are in the order of the source."""
        sizes = even_shards(len(images), self.ranks)
        own = torch.arange(len(images)).split(sizes)[self.rank]
        return self._embed(TrainingData(images, self.config, self.model.input), own), images.labels[own]

    def _embed(self, data: TrainingData, indices: Tensor) -> Tensor:
        """[n, dim]; all ranks pass as many batches through the network, some empty: FSDP2 needs them for each."""
        device = self.proxies.proxies.device
        every = self.proxies.comm.gather_integers([len(indices)], device, "images to embed")
        here, most = (max(1, -(-n // _PICTURES)) for n in (len(indices), max(n for (n,) in every)))
        missing = [data.plain_batches(indices[:0], _PICTURES) for _ in range(most - here)]
        return embed(self.model, chain(data.plain_batches(indices, _PICTURES), *missing))

    def weights(self) -> dict[str, Tensor]:
        """The state of the network in one piece, on rank 0; all ranks together."""
        to_shards(self.model)
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(self.model, options=whole))

    def save(self, folder: Path, numbers: dict[str, Any]) -> None:
        """All ranks together. UserError if one cannot write."""
        others = network_state(self.model, self.of_network)
        with self._said_once():
            checkpoint.save(folder, self.proxies, self.of_proxies, others, numbers, self.ccp)

    def load(self, folder: Path) -> dict[str, Any]:
        """A checkpoint of any number of ranks; returns its numbers. UserError if it cannot be read."""
        others = network_state(self.model, self.of_network)
        with self._said_once("; move this folder away to go on from the checkpoint before"):
            numbers = checkpoint.load(folder, self.proxies, self.of_proxies, others, self.ccp)
        load_network_state(self.model, self.of_network, others)
        return numbers

    @contextmanager
    def _said_once(self, otherwise: str = "") -> Iterator[None]:
        """What is wrong with a checkpoint, which all ranks know."""
        try:
            yield
        except checkpoint.CheckpointError as error:
            raise UserError(f"{error}{otherwise}" if self.rank == 0 else "") from None


def _with_own_workers(config: Config) -> Config:
    """The cores of a machine are shared by the processes on it, which torchrun counts."""
    if config.data.workers is not None:
        return config
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return with_settings(config, data__workers=max(1, worker_count(None) // here))
