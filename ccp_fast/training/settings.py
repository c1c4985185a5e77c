"""Every setting of a run, with its default: glyphs, C2 with CCP, under three minutes on two cores.

The text below a setting says what it means; `ccp-train --show-config` prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ccp_fast.training.schedule import Schedule

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Index = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]

LossName = Literal[
    "c1",
    "c2",
    "triplet",
    "multi_similarity",
    "lifted_structure",
    "proxy_nca",
    "proxy_anchor",
    "soft_triple",
    "margin_softmax",
]
Options = dict[str, float | str | None]  # of a loss
DataName = Literal["glyphs", "glyphs-large", "sop", "cub", "cars", "inshop", "folders"]
MethodName = Literal["plain", "ccp", "alternating", "intra-batch", "xbm"]
LOSS_ALIASES = {"contrastive": "c2", "ms": "multi_similarity"}


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values cannot be changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class DataConfig(Section):
    """What is trained on: see docs/tools/data.md."""

    name: DataName = "glyphs"
    root: Path | None = None
    """Folder of the data set; glyphs is in the package and needs none."""
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training classes held out to pick the step that is reported; glyphs has its own."""
    held_out_typefaces: Index = 0
    """Typefaces of glyphs-large not trained on: images in these are searched among the others."""
    counts: Literal["published", "any"] = "published"
    """published: numbers of classes and images have to be those of the data set; any: a part will do."""
    on_broken: Literal["stop", "skip"] = "stop"
    """stop: an image that cannot be read ends the run; skip: try all files before, and leave those out."""
    workers: Index | None = None
    """Processes that decode images; null: one a core, 16 at most."""


class ModelConfig(Section):
    """The network."""

    name: str = "glyph-cnn"
    """glyph-cnn, efficientnet-lite0, bn-inception, or any model of timm as timm:resnet50."""
    widths: tuple[Count, Count, Count, Count] = (24, 48, 96, 128)
    """Channels of glyph-cnn's four convolutions."""
    dim: Count = 128
    """Components of an embedding."""
    pooling: Literal["gap", "gap+gmp", "token"] = "gap"
    """How a backbone's last features become one vector: mean, mean plus maximum, or a transformer's class token."""
    image_size: Count | None = None
    """Pixels of an image's side; null: what the network is usually shown."""
    weights: str = "default"
    """What it starts from: default (ImageNet's; glyph-cnn has none), random, or a file."""
    frozen_norms: bool = False
    """Batch norms keep their statistics, scales and shifts as they are."""


class ComputeConfig(Section):
    """How the network is computed, not what.

    Runs on the CPU are equal to the bit; on a GPU some operations of torch add in any order.
    """

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    """cpu, cuda, or cuda:1 and so on."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast: losses and parameters stay float32."""
    channels_last: bool = True
    """Memory format of feature maps."""
    compile: bool = False
    """Compile the network by torch.compile; takes a minute or so at the start."""


class AugmentConfig(Section):
    """Random changes of a training image of a glyph set, see `ccp_fast.training.augment`."""

    rotate: Amount = 10.0
    """Largest angle to either side, in degrees."""
    shear: Amount = 0.15
    """Largest shear to either side."""
    scale: Amount = 0.15
    """Each side is scaled by up to 1 + scale, or down to the inverse."""
    shift: Amount = 0.08
    """Largest shift, as a share of the image's side."""
    erase: Fraction = 0.5
    """Probability of a blank rectangle."""


class CropConfig(Section):
    """What is cut of an image file, see `ccp_fast.training.inputs.files`; `model` says what size a network is shown."""

    shorter_side: Count = 256
    """Pixels of the shorter side to which an image is resized first."""
    least: Positive = 40.0
    """Smallest crop: the area of a square of so many pixels a side, of the resized image."""
    aspect: Annotated[float, Field(ge=1)] = 4 / 3
    """Most elongated crop: width over height from 1/aspect to aspect."""
    mirror: Fraction = 0.5
    """Probability that a crop is mirrored."""

    @model_validator(mode="after")
    def _cuts_less_than_the_whole(self) -> CropConfig:
        if self.least > self.shorter_side:
            raise ValueError(
                f"least: expected at most shorter_side = {self.shorter_side}, got {self.least:g}"
            )
        return self


class BatchConfig(Section):
    """A batch of different classes."""

    classes: Count = 16
    """Classes in a batch."""
    samples: Annotated[int, Field(ge=2)] = 4
    """Images of each of them."""


class OptimizerConfig(Section):
    """Of the network, and how fast proxies learn that a loss owns."""

    name: Literal["adam", "radam"] = "adam"
    lr: Positive = 1e-3
    """Learning rate at the start."""
    schedule: Schedule = "constant"
    """What becomes of lr: constant; cosine, half a period to 0; drop, to a tenth after 3/7 of the steps."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: Amount = 0.0
    """On the weights of the network, not on proxies."""
    proxies: Literal["auto", "same", "hundredfold"] = "auto"
    """How fast they learn. same: at lr. hundredfold: at 100 times lr, and in the first epoch they alone. auto:
    hundredfold for proxy_nca, proxy_anchor and soft_triple where the method is plain, as is customary, else same. A run
    stores which."""
    proxy_lr_factor: Positive = 1.0
    """Factor on the rate that `proxies` gives them."""
    proxy_warm_up: Amount | None = None
    """Epochs in which proxies alone learn; null: as `proxies` says."""
    warm_up_embedding: bool = False
    """In those epochs the network's last layer learns too, as in Proxy-Anchor's code."""
    clip_norm: Positive | None = None
    """Largest norm of all gradients together, after the proximal term; null: not clipped."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a moving average of the weights, which is then what is evaluated; null: none."""


class LossConfig(Section):
    """Between samples and proxies."""

    name: Annotated[LossName, BeforeValidator(lambda name: LOSS_ALIASES.get(name, name))] = "c2"
    """c1, c2 (contrastive), triplet, multi_similarity (ms), lifted_structure; with proxies of their own proxy_nca,
    proxy_anchor, soft_triple, margin_softmax (ArcFace)."""
    options: Options = {}
    """Of the loss, as published where not given: --set loss.options.neg_margin=0.6."""
    options_of: dict[LossName, Options] = {}
    """Of each loss, where several are compared: --set loss.options_of.c2.neg_margin=0.6."""
    proxies_per_class: Count | None = None
    """In plain training; null: none for a loss between samples, as many as it has by itself for the others."""

    @property
    def given_options(self) -> Options:
        """Those of the named loss."""
        return {**self.options_of.get(self.name, {}), **self.options}


class CcpConfig(Section):
    """The algorithm of `ccp_fast.AlternatingProjections`; where method is ccp."""

    proxies_per_class: Count = 4
    """K, proxies of each class."""
    pool_size: Count = 8
    """b, images of a class from which its proxies are chosen."""
    pool: Literal["fresh", "memory"] = "fresh"
    """fresh: embed the images anew; memory: take the embeddings that training computed last."""
    lam: Amount = 2e-4
    """λ of the proximal term λ/2·‖w − w_prev‖²."""
    lam_decay: Amount = 1.0
    """Factor of λ from one sub-problem to the next."""
    warm_start: Fraction = 0.5
    """Share of all steps trained with the plain loss first."""
    project_every: Count | None = 200
    """Steps of a sub-problem; null: `patience` ends it."""
    patience: Count = 3
    """Evaluations without gain that end a sub-problem, where project_every is null."""
    min_delta: Amount = 1e-5
    """The least that counts as a gain."""
    pair_weight: Amount = 0.1
    """Factor on the loss within the batch."""
    proxy_weight: Amount = 1.0
    """Factor on the loss to the proxies."""
    reinitialize: bool = True
    """false: proxies are chosen once, at the end of the warm start."""
    seeded: bool = True
    """false: k-center chooses from the pool alone, without the old proxies as seeds."""
    reload_best: bool = False
    """A sub-problem starts from the best weights of the one before."""

    @model_validator(mode="after")
    def _pool_holds_the_proxies(self) -> CcpConfig:
        if self.pool_size < self.proxies_per_class:
            least = f"proxies_per_class = {self.proxies_per_class}"
            raise ValueError(f"pool_size: expected at least {least}, got {self.pool_size}")
        return self


class AlternatingConfig(Section):
    """Projections onto feasible sets, see `ccp_fast.samplers.RepresentativeSampler`; where method is alternating."""

    lifetime: Count = 20
    """Steps for which a class keeps its representative, and w_prev stays."""
    lam: Amount = 2e-4
    """λ of the proximal term λ/2·‖w − w_prev‖²."""
    hard_classes: bool = True
    """After the warm start a batch has classes that are near each other."""
    warm_start: Fraction = 0.25
    """Share of all steps, with classes at random."""


class IntraBatchConfig(Section):
    """Message passing, see `ccp_fast.nn.IntraBatchLoss`; where method is intra-batch.

    The settings published for SOP, which has many classes of few images too. Published with them are
    optimizer.name=radam and optimizer.schedule=drop, which --data sop and so on take; on glyphs all methods have Adam.
    """

    heads: Count = 8
    """Of attention."""
    layers: Count = 1
    """Rounds of message passing."""
    temperature: Positive = 0.605
    """Of both softmaxes."""
    smoothing: Fraction = 0.1
    """Share of a label spread over all classes."""
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.1


class XbmConfig(Section):
    """`ccp_fast.CrossBatchMemory`; where method is xbm."""

    size: Count = 6400
    """Embeddings kept; as many as glyphs has images to train on."""
    warm_up: Fraction = 0.5
    """Share of all steps trained without the memory first."""
    pair_weight: Amount = 1.0
    """Factor on the loss within the batch."""
    memory_weight: Amount = 1.0
    """Factor on the loss to the memory."""
    include_batch: bool = True
    """The batch itself is among the references, each image left out of its own."""


class EvaluationConfig(Section):
    """Retrieval on the validation classes picks the step that is reported on the test classes."""

    every: Count = 100
    """Steps from one evaluation to the next; each writes a checkpoint, or as many as `checkpoints.every` says."""
    patience: Count | None = None
    """Evaluations without a better one after which a run ends, counted from the end of a method's warm start (60 in the
    paper of CCP); null: it ends after `steps`."""
    train_classes: Count = 200
    """How many classes of those trained on are measured as well, at most; where no class is held out, these alone."""
    backend: Literal["ccp_fast", "faiss"] = "ccp_fast"
    """What searches for neighbours; the metrics are the same to the bit."""
    nmi: bool = True
    """Measure NMI at the end; k-means over many classes costs far more than all other metrics."""
    kmeans: Literal["scikit-learn", "faiss"] = "scikit-learn"
    """Which k-means NMI uses; faiss is faster and gives a lower NMI."""


class ProtocolConfig(Section):
    """How many networks are trained on which classes, see `ccp_fast.training.protocols`.

    In all of them test classes are looked at once, after all networks are trained.
    """

    name: Literal["held-out", "conventional", "reality-check"] = "held-out"
    """held-out: the step is reported that is best on the validation classes. conventional: trained on all training
    classes, nothing held out; the last step is reported, and what CCP goes by is retrieval among some of the classes it
    trains on. reality-check: each network holds out another part of the training classes and is taken at the step best
    on it."""
    networks: Count | None = None
    """How many are trained, measured one by one and concatenated; null: 1, or 4 for reality-check."""
    network: Index | None = None
    """Which of them a run is; the trainer sets it."""

    @property
    def count(self) -> int:
        """Of networks."""
        return self.networks or (4 if self.name == "reality-check" else 1)

    @property
    def holds_out(self) -> bool:
        """Some of the training classes, by which a step is picked."""
        return self.name != "conventional"

    @property
    def is_whole(self) -> bool:
        """Several networks, not one of them."""
        return self.count > 1 and self.network is None

    @model_validator(mode="after")
    def _parts_can_be_held_out(self) -> ProtocolConfig:
        if self.name == "reality-check" and self.count < 2:
            raise ValueError(f"networks: expected at least 2 for reality-check, got {self.count}")
        if self.network is not None and self.network >= self.count:
            raise ValueError(f"network: expected less than {self.count}, got {self.network}")
        return self


class CheckpointsConfig(Section):
    """Which checkpoints are written, and which stay beside the best that each of them names."""

    every: Count = 1
    """Evaluations from one checkpoint to the next. Written in any case: where classes are held out, the best so far;
    the last, and those of keep_every. A run that is killed goes on from the newest, to the same bits."""
    keep: Count = 2
    """How many of the newest; two, so that one may be damaged."""
    keep_every: Count | None = None
    """Those at multiples of so many steps are never deleted."""


class Config(Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of weights, batches and augmentation."""
    method: MethodName = "ccp"
    """plain, ccp, alternating, intra-batch or xbm."""
    steps: Count = 4000
    """Batches to train on."""
    threads: Count | None = None
    """Of the CPU; null: as many as there are cores. The bits of a result depend on it."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    compute: ComputeConfig = ComputeConfig()
    augment: AugmentConfig = AugmentConfig()
    crop: CropConfig = CropConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    ccp: CcpConfig = CcpConfig()
    alternating: AlternatingConfig = AlternatingConfig()
    intra_batch: IntraBatchConfig = IntraBatchConfig()
    xbm: XbmConfig = XbmConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    loggers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """tensorboard, wandb; metrics.jsonl is always written."""

    @property
    def warm_start_steps(self) -> int:
        """Steps in which the network is trained by the plain loss before what the method is named after begins."""
        shares = {
            "ccp": self.ccp.warm_start,
            "alternating": self.alternating.warm_start,
            "xbm": self.xbm.warm_up,
        }
        return round(shares.get(self.method, 0.0) * self.steps)

    @model_validator(mode="after")
    def _patience_has_classes_to_go_by(self) -> Config:
        if self.evaluation.patience is not None and not self.protocol.holds_out:
            raise ValueError(
                f"evaluation.patience: expected null under the protocol {self.protocol.name}, which holds out no class "
                f"to go by, got {self.evaluation.patience}"
            )
        return self
