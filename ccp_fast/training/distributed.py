"""`ccp-train distributed`: the trainer's losses, plain or with CCP, over the processes that torchrun starts.

Each process trains on its part of the trainer's batches. The network is under DDP or FSDP2, the proxies are sharded by
class, evaluation is split, and a checkpoint is gone on from by any number of processes. Rank 0 writes the run's folder,
which all see.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ccp_fast.alternating.pool import embed_pool
from ccp_fast.ccp import AlternatingProjections
from ccp_fast.data import EvaluationSet, ImageSource
from ccp_fast.distributed import (
    ShardedLoss,
    ShardedProxies,
    checkpoint,
    clear_errors,
    embed_own_pool,
    load_network_state,
    network_state,
    retrieval,
)
from ccp_fast.distributed.pool import OwnPool
from ccp_fast.samplers import ClassPoolSampler, MPerClassSampler
from ccp_fast.training import environment
from ccp_fast.training.config import Config, with_settings
from ccp_fast.training.data import TrainingData
from ccp_fast.training.errors import UserError
from ccp_fast.training.folds import splits_of
from ccp_fast.training.methods.ccp import projections
from ccp_fast.training.metrics import MetricLog
from ccp_fast.training.model import build_network
from ccp_fast.training.objective import build_loss
from ccp_fast.training.optimizer import proxy_rate
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.schedule import rate_factor

Wrapper = Literal["ddp", "fsdp"]
MONITORED = ("map_at_r", "r_precision", "precision_at_1")
FINAL = ("precision_at_1", "r_precision", "map_at_r", "recall_at_k")
_PICTURES = 256  # that pass through the network at a time in evaluation


class Progress(NamedTuple):
    """What a checkpoint says of a run."""

    step: int = 0
    best_step: int | None = None
    best_metric: float = -1.0


class DistributedLearner:
    """Network, sharded proxies, an optimizer of each, and CCP if it is the method.

    UserError for settings that need more than one process has, or another method.
    """

    def __init__(self, config: Config, images: ImageSource, wrapper: Wrapper, sample_rate: float) -> None:
        rate = proxy_rate(config)
        _check(config, rate.warm_up)
        self.config, self.rank, self.ranks = config, dist.get_rank(), dist.get_world_size()
        torch.manual_seed(config.seed)  # the same weights on every rank
        self.inner = build_network(config.model, config.compute)
        self.data = TrainingData(images, config, self.inner.input)
        batch = config.batch
        self.sampler = MPerClassSampler(self.data.labels, batch.classes, batch.samples, seed=config.seed)
        self.wrapped: nn.Module = self.inner
        if wrapper == "fsdp":
            self.inner.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload] # FSDP2 takes no other
            fully_shard(self.inner, mesh=init_device_mesh("cpu", (self.ranks,)))  # in place
        else:
            self.wrapped = DistributedDataParallel(self.inner)
        per_class = config.ccp.proxies_per_class if config.method == "ccp" else 1
        self.proxies = ShardedProxies(
            images.num_classes, per_class, config.model.dim, sample_rate=sample_rate, seed=config.seed
        )
        like = build_loss(config, 2, proxies=True)  # of two classes: for its function and options
        self.loss = ShardedLoss(like.function, self.proxies, **like.options)
        c = config.optimizer
        kind = torch.optim.RAdam if c.name == "radam" else torch.optim.Adam
        self.of_network = kind(self.inner.parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay)
        self.of_proxies = kind([self.proxies.proxies], lr=c.lr * rate.factor, betas=c.betas)
        self._rates = ((self.of_network, c.lr), (self.of_proxies, c.lr * rate.factor))
        if sample_rate < 1:
            self.proxies.attach(self.of_proxies)
        self.ccp = self._make_ccp() if config.method == "ccp" else None

    def _make_ccp(self) -> AlternatingProjections:
        self._pools = ClassPoolSampler(self.data.labels, self.config.ccp.pool_size, seed=self.config.seed)
        ccp = projections(self.config, self.inner, self.loss)
        ccp.attach(self.of_network, self.of_proxies)
        return ccp

    def train_step(self, step: int) -> float:
        """This rank's part of a batch; returns the loss of the whole."""
        if self.ccp is not None and self.ccp.due:
            self.agree_on_buffers()
            self.ccp.project(
                lambda k: embed_own_pool(self.inner, _images_of(self.data), self._pools.pool(k), self.proxies)
            )
        factor = rate_factor(self.config.optimizer.schedule, step, self.config.steps)
        for optimizer, rate in self._rates:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        own = self.sampler.batch(step)[self.rank :: self.ranks]
        # Every rank augments as if its part were the batch of a step of its own.
        images, labels = self.data.batch(step * self.ranks + self.rank, own)
        embeddings = self.wrapped(images)
        loss = self.loss(embeddings, labels) if self.ccp is None else self.ccp.loss(embeddings, labels)
        loss.backward()
        for optimizer, _ in self._rates:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    @torch.no_grad()
    def agree_on_buffers(self) -> None:
        """Running statistics become the mean over the ranks."""
        for buffer in self.inner.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= self.ranks

    def evaluate(self, images: EvaluationSet, metrics: tuple[str, ...]) -> dict[str, float]:
        """Of the samples of all ranks, each embedding and ranking its share."""
        query, labels = self._embed(images.query)
        gallery, gallery_labels = (None, None) if images.gallery is None else self._embed(images.gallery)
        normalize = self.loss.normalize
        return retrieval(query, labels, gallery, gallery_labels, metrics, normalize=normalize)

    def _embed(self, images: ImageSource) -> tuple[Tensor, Tensor]:
        own = torch.arange(self.rank, len(images), self.ranks)
        data = TrainingData(images, self.config, self.inner.input)
        batches = math.ceil(
            math.ceil(len(images) / self.ranks) / _PICTURES
        )  # as many on every rank, for FSDP2
        pool = OwnPool(own, torch.tensor([0, len(own)]))
        embedded = embed_pool(self.inner, _images_of(data), pool, _PICTURES, batches=batches)
        return embedded.embeddings, images.labels[own]

    def save(self, folder: Path, progress: Progress) -> None:
        """All ranks together."""
        others = network_state(self.inner, self.of_network)
        checkpoint.save(folder, self.proxies, self.of_proxies, others, progress._asdict(), self.ccp)

    def load(self, folder: Path) -> Progress:
        """A checkpoint of any number of ranks."""
        others = network_state(self.inner, self.of_network)
        numbers = checkpoint.load(folder, self.proxies, self.of_proxies, others, self.ccp)
        load_network_state(self.inner, self.of_network, others)
        return Progress(**numbers)


def _images_of(data: TrainingData) -> Callable[[Tensor], Tensor]:
    """Images by index, as they are seen in evaluation."""
    return lambda indices: torch.cat(list(data.plain_batches(indices)))


def _check(config: Config, warm_up: float) -> None:
    """UserError for what one process can do and several cannot."""
    for key, value, possible in (
        ("method", config.method, ("plain", "ccp")),
        ("ccp.pool", config.ccp.pool, ("fresh",)),
        ("compute.device", config.compute.device, ("cpu",)),
        ("compute.compile", config.compute.compile, (False,)),
        ("optimizer.proxy_warm_up", warm_up, (0.0,)),
        ("optimizer.clip_norm", config.optimizer.clip_norm, (None,)),
        ("optimizer.ema_decay", config.optimizer.ema_decay, (None,)),
        ("protocol.networks", 2 if config.protocol.is_whole else 1, (1,)),
    ):
        if value not in possible:
            expected = " or ".join(str(x) for x in possible)
            raise UserError(f"{key}: expected {expected} over several processes, got {value!r}")


def train(
    path: Path,
    config: Config | None,
    wrapper: Wrapper,
    sample_rate: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train into a new folder, or without a config go on with the run in it; returns the final numbers.

    On every rank of an initialised process group. Raises UserError on all of them, and RankLost.
    """
    run = _on_rank_zero(path, config)
    with clear_errors("training"):
        return _run(run, wrapper, sample_rate, say)


def _on_rank_zero(path: Path, config: Config | None) -> RunFolder:
    """The folder, made by rank 0; what is wrong with it is told by all."""
    wrong: list[str | None] = [None]
    if dist.get_rank() == 0:
        try:
            if config is not None:
                threads = config.threads or torch.get_num_threads()
                RunFolder.create(path, with_settings(config, threads=threads), environment.describe(threads))
            RunFolder.open(path)
        except UserError as error:
            wrong = [str(error)]
    dist.broadcast_object_list(wrong, src=0)
    if wrong[0] is not None:
        raise UserError(wrong[0])
    return RunFolder.open(path)


def _run(run: RunFolder, wrapper: Wrapper, sample_rate: float, say: Callable[[str], None]) -> dict[str, Any]:
    finished = run.summary
    if finished is not None:
        return finished
    config, first = run.config, dist.get_rank() == 0
    torch.set_num_threads(config.threads or torch.get_num_threads())
    splits = splits_of(config)
    learner = DistributedLearner(config, splits.train, wrapper, sample_rate)
    latest, best = (run.path / "checkpoints" / name for name in ("latest", "best"))
    progress = learner.load(latest) if latest.is_dir() else Progress()
    log = MetricLog(run.path, "metrics") if first else None
    if log is not None:
        log.truncate(progress.step)
    total, count = 0.0, 0
    for step in range(progress.step, config.steps):
        total, count = total + learner.train_step(step), count + 1
        progress = progress._replace(step=step + 1)
        if progress.step % config.evaluation.every and progress.step != config.steps:
            continue
        learner.agree_on_buffers()
        found = learner.evaluate(splits.val, MONITORED)
        if learner.ccp is not None:
            learner.ccp.update(found["map_at_r"])
        row = {
            "step": progress.step,
            "loss": total / count,
            **{f"val_{name}": found[name] for name in MONITORED},
        }
        if found["map_at_r"] > progress.best_metric:
            progress = progress._replace(best_step=progress.step, best_metric=found["map_at_r"])
            learner.save(best, progress)
        learner.save(latest, progress)
        if log is not None:
            log.append(row)
        say(f"step {progress.step}: loss {total / count:.4f}, MAP@R on new classes {found['map_at_r']:.4f}")
        total, count = 0.0, 0
    learner.load(best)
    summary = {
        "loss": config.loss.name,
        "method": config.method,
        "steps": config.steps,
        "best_step": progress.best_step,
        "processes": dist.get_world_size(),
        "network": wrapper,
        "sample_rate": sample_rate,
        "val": {"map_at_r": progress.best_metric},
        "test": learner.evaluate(splits.test, FINAL),
    }
    if first:
        run.write_json("summary.json", summary)
    say(json.dumps(summary["test"]))
    return summary
