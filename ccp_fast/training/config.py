"""Every setting of a run, with its default: glyphs, C2 with CCP, under three minutes on two cores."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ccp_fast.training.errors import UserError
from ccp_fast.training.schedule import Schedule

Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
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

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """What is trained on, from the folder `root`: see docs/tools/data.md. glyphs is in the package and needs none.

    `val_share` of the training classes are held out to pick the step that is reported; glyphs has its own.
    `held_out_typefaces` of glyphs-large are not trained on: images in these are searched among the others.
    """

    name: DataName = "glyphs"
    root: Path | None = None
    val_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    held_out_typefaces: Annotated[int, Field(ge=0)] = 0
    counts: Literal["published", "any"] = "published"  # of classes and images, where they were published
    on_broken: Literal["stop", "skip"] = (
        "stop"  # skip: try all image files before, and leave out what is broken
    )
    workers: Annotated[int, Field(ge=0)] | None = None  # processes that decode; None: one a core, 16 at most


class ModelConfig(Section):
    """The network: glyph-cnn, efficientnet-lite0, bn-inception, or any model of timm as timm:resnet50.

    `weights` it starts from: default (ImageNet's; glyph-cnn has none), random, or a file. `pooling` of a backbone's
    last features: gap (mean), gap+gmp (mean plus maximum), token (a transformer's class token).
    """

    name: str = "glyph-cnn"
    widths: tuple[Count, Count, Count, Count] = (24, 48, 96, 128)  # channels of glyph-cnn's four convolutions
    dim: Count = 128  # of the embedding
    pooling: Literal["gap", "gap+gmp", "token"] = "gap"
    image_size: Count | None = None  # pixels of a side, instead of what the network is usually shown
    weights: str = "default"
    frozen_norms: bool = False  # batch norms keep their statistics, scales and shifts


class ComputeConfig(Section):
    """How the network is computed, not what: `precision` bf16 is autocast, losses and parameters stay float32.

    Runs on the CPU are equal to the bit; on a GPU some operations of torch add in any order.
    """

    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = True  # the memory format of feature maps
    compile: bool = False  # by torch.compile; a minute or so at the start


class AugmentConfig(Section):
    """Random changes of a training image of a glyph set, see `ccp_fast.training.augment`."""

    rotate: Amount = 10.0  # degrees to either side
    shear: Amount = 0.15
    scale: Amount = 0.15  # each side by a factor up to 1 + scale, or down to its inverse
    shift: Amount = 0.08  # of the image's side
    erase: Fraction = 0.5  # probability of a blank rectangle


class CropConfig(Section):
    """What is cut of an image file, see `ccp_fast.training.inputs.files`; `model` says what size a network is shown."""

    shorter_side: Count = 256  # pixels, to which an image is resized first
    least: Annotated[float, Field(gt=0)] = (
        40.0  # side of the smallest square that is cut, of shorter_side pixels
    )
    aspect: Annotated[float, Field(ge=1)] = 4 / 3  # or its inverse, at most
    mirror: Fraction = 0.5  # probability

    @model_validator(mode="after")
    def _cuts_less_than_the_whole(self) -> CropConfig:
        if self.least > self.shorter_side:
            raise ValueError(
                f"least: expected at most shorter_side = {self.shorter_side}, got {self.least:g}"
            )
        return self


class BatchConfig(Section):
    """A batch: `classes` different classes with `samples` images each."""

    classes: Count = 16
    samples: Annotated[int, Field(ge=2)] = 4


class OptimizerConfig(Section):
    """Adam, and how fast proxies learn that a loss owns.

    `proxies` same: at lr. hundredfold: at 100 times lr, and in the first epoch they alone. auto: hundredfold where the
    loss was published so (proxy_nca, proxy_anchor, soft_triple) and the method is plain, else same; a run stores which.
    """

    name: Literal["adam", "radam"] = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Schedule = "constant"  # cosine: half a period, to 0; drop: to a tenth after 3/7 of the steps
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: Amount = 0.0  # of the network, not of the proxies
    proxies: Literal["auto", "same", "hundredfold"] = "auto"
    proxy_lr_factor: Annotated[float, Field(gt=0)] = 1.0  # times that preset's rate
    proxy_warm_up: Amount | None = None  # epochs in which proxies alone learn, instead of that preset's
    warm_up_embedding: bool = False  # the network's last layer learns in them too, as in Proxy-Anchor's code
    clip_norm: Annotated[float, Field(gt=0)] | None = (
        None  # of all gradients together, after the proximal term
    )
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None  # averaged weights are what is evaluated


class LossConfig(Section):
    """`c1`, `c2` (= contrastive), `triplet`, `multi_similarity` (= ms), or one that owns proxies.

    Those are `proxy_nca`, `proxy_anchor`, `soft_triple` and `margin_softmax` (ArcFace). `proxies_per_class` of plain
    training: None is none for a loss between samples, and what the loss has by itself for the others. `options` that
    are not given are as published; of margin_softmax with its `kind`, which a run stores.
    """

    name: Annotated[LossName, BeforeValidator(lambda name: LOSS_ALIASES.get(name, name))] = "c2"
    options: Options = {}  # --set loss.options.neg_margin=0.6
    options_of: dict[LossName, Options] = {}  # --set loss.options_of.c2.neg_margin=0.6
    proxies_per_class: Count | None = None

    @property
    def given_options(self) -> Options:
        """Those of the named loss."""
        return {**self.options_of.get(self.name, {}), **self.options}


class CcpConfig(Section):
    """The algorithm of `ccp_fast.AlternatingProjections`; where method is ccp."""

    proxies_per_class: Count = 4  # K
    pool_size: Count = 8  # b
    pool: Literal["fresh", "memory"] = "fresh"  # embedded anew, or as training computed it last
    lam: Amount = 2e-4
    lam_decay: Amount = 1.0
    warm_start: Fraction = 0.5  # share of all steps trained with the plain loss first
    project_every: Count | None = 200  # steps of a sub-problem; None: until `patience` ends it
    patience: Count = 3  # evaluations without gain that end a sub-problem, where project_every is None
    min_delta: Amount = 1e-5
    pair_weight: Amount = 0.1
    proxy_weight: Amount = 1.0
    reinitialize: bool = True  # False: proxies are chosen once, at the end of the warm start
    seeded: bool = True  # False: k-center chooses from the pool alone, without the old proxies as seeds
    reload_best: bool = False

    @model_validator(mode="after")
    def _pool_holds_the_proxies(self) -> CcpConfig:
        if self.pool_size < self.proxies_per_class:
            least = f"proxies_per_class = {self.proxies_per_class}"
            raise ValueError(f"pool_size: expected at least {least}, got {self.pool_size}")
        return self


class AlternatingConfig(Section):
    """Projections onto feasible sets, see `ccp_fast.samplers.RepresentativeSampler`; where method is alternating."""

    lifetime: Count = 20  # steps for which a class keeps its representative, and w_prev stays
    lam: Amount = 2e-4
    hard_classes: bool = True  # batches of classes near each other, from the end of the warm start on
    warm_start: Fraction = 0.25  # share of all steps


class IntraBatchConfig(Section):
    """Message passing, see `ccp_fast.nn.IntraBatchLoss`; where method is intra-batch.

    The settings published for SOP, which has many classes of few images too. Published with them are
    optimizer.name=radam and optimizer.schedule=drop, for a pretrained network; methods are compared without.
    """

    heads: Count = 8
    layers: Count = 1
    temperature: Annotated[float, Field(gt=0)] = 0.605
    smoothing: Fraction = 0.1
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.1


class XbmConfig(Section):
    """`ccp_fast.CrossBatchMemory`; where method is xbm."""

    size: Count = 6400  # as many as `glyphs` has to train on
    warm_up: Fraction = 0.5  # share of all steps
    pair_weight: Amount = 1.0
    memory_weight: Amount = 1.0
    include_batch: bool = True


class EvaluationConfig(Section):
    """Retrieval on the validation classes picks the step that is reported on the test classes.

    `train_classes` of those trained on are measured as well; where no class is held out, these alone. After `patience`
    evaluations without a better one a run ends, in CCP counted from the end of the warm start; null: after `steps`.
    """

    every: Count = 100  # steps; a checkpoint is written at the same time
    patience: Count | None = None  # the paper of CCP has 60
    train_classes: Count = 200  # at most
    backend: Literal["ccp_fast", "faiss"] = "ccp_fast"  # who looks for candidates; ranks are the same bits
    nmi: bool = True  # at the end; k-means over many classes costs far more than all other metrics
    kmeans: Literal["scikit-learn", "faiss"] = "scikit-learn"  # of NMI; faiss: faster, lower figures


class ProtocolConfig(Section):
    """How many networks are trained on which classes, see `ccp_fast.training.protocols`.

    held-out: the step is reported that is best on the validation classes. conventional: trained on all training
    classes, nothing held out; the last step is reported, and what CCP goes by is retrieval among some of the classes
    it trains on. reality-check: each network holds out another part of the training classes and is taken at the step
    best on it. In all of them test classes are looked at once, after all networks are trained.
    """

    name: Literal["held-out", "conventional", "reality-check"] = "held-out"
    networks: Count | None = None  # None: 1, or 4 for reality-check; measured one by one and concatenated
    network: Annotated[int, Field(ge=0)] | None = None  # which of them a run is; the trainer sets it

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
    """Which checkpoints stay: the newest ones, the best that each of them names, and some for good."""

    keep: Count = 2  # so that one may be damaged
    keep_every: Count | None = None  # steps; those of its multiples are never deleted


class Config(Section):
    """A whole run."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    method: MethodName = "ccp"
    steps: Count = 4000
    threads: Count | None = None  # None: as many as there are cores. The bits of a result depend on it
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

    @model_validator(mode="after")
    def _patience_has_classes_to_go_by(self) -> Config:
        if self.evaluation.patience is not None and not self.protocol.holds_out:
            raise ValueError(
                f"evaluation.patience: expected null under the protocol {self.protocol.name}, which holds out no class "
                f"to go by, got {self.evaluation.patience}"
            )
        return self


def load_config(
    file: Path | None = None,
    settings: Iterable[str] = (),
    flags: Mapping[str, Any] | None = None,
    base: Config | None = None,
) -> Config:
    """Defaults (or `base`), then a YAML file, then `a.b=c` settings, then flags {"a.b": c}; the last one wins.

    A flag that is None was not given.

    Raises UserError for a file that cannot be read, an unknown key or a bad value.
    """
    values = given_values(file, settings, flags)
    if base is not None:
        values = merged(base.model_dump(), values)
    return make_config(values, "" if file is None else f"{file}: ")


def given_values(
    file: Path | None, settings: Iterable[str], flags: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What `load_config` is given, in sections, before the defaults. UserError for a file that cannot be read."""
    values: dict[str, Any] = {} if file is None else _read(file)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: expected key=value, for example --set batch.classes=32")
        _put(values, key.strip(), _parse(text, f"--set {setting}"))
    for key, value in (flags or {}).items():
        if value is not None:
            _put(values, key, value)
    return values


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Sections key by key, of which `over` wins; an empty section there stays empty."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping) and value
        result[key] = merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def make_config(values: Mapping[str, Any], where: str = "") -> Config:
    """A Config from nested dicts; UserError, starting with `where`, for an unknown key or a bad value."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError(where + _sentence(error)) from None


def to_yaml(config: Config) -> str:
    """The config as a file that `load_config` reads."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def explained(config: Config) -> str:
    """`to_yaml` with what each section is about."""
    lines = []
    for text in to_yaml(config).splitlines():
        field = Config.model_fields.get(text.partition(":")[0])
        if field is not None and isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            about = inspect.cleandoc(field.annotation.__doc__ or "")
            lines += [f"# {line}".rstrip() for line in about.splitlines()]
        lines.append(text)
    return "\n".join(lines) + "\n"


def with_settings(config: Config, **changes: Any) -> Config:
    """A copy with some keys changed; "__" stands for the dot: batch__classes=32."""
    values = config.model_dump()
    for key, value in changes.items():
        _put(values, key.replace("__", "."), value)
    return make_config(values)


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """All dotted keys."""
    keys = []
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            keys += known_keys(field.annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


# Where a run computes and finds its data, not what: these may be others where it goes on.
MOVABLE = ("data.root", "data.workers", "compute.device", "loggers")


def differing(a: Config, b: Config) -> list[str]:
    """Dotted keys with other values."""
    return [key for key in known_keys() if value_of(a, key) != value_of(b, key)]


def moved(config: Config, to: Config) -> Config:
    """A copy with the `MOVABLE` settings of another; a root that it does not name stays as it is."""
    changes = {key.replace(".", "__"): value_of(to, key) for key in MOVABLE}
    if to.data.root is None:
        del changes["data__root"]
    return with_settings(config, **changes)


def value_of(config: Config, key: str) -> object:
    """The value of a dotted key."""
    value: object = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def nearest(word: str, words: Iterable[str]) -> str:
    """'; did you mean ...?' where a word is close, else nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"config file {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"config file {file} is not text in UTF-8") from None
    values = _parse(text, f"config file {file}")
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(f"config file {file}: expected keys with values, such as 'steps: 2000'")
    return values


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{where}: not valid YAML{line} ({getattr(error, 'problem', None) or 'unreadable'})"
        ) from None


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(
                f"unknown key {key!r}: {section!r} is a value, not a section{nearest(key, known_keys())}"
            )
        values = inner
    values[name] = value


def _sentence(error: ValidationError) -> str:
    """The first error as one sentence."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}{nearest(key, known_keys())}"
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "value_error":
        return f"{key}.{message}" if key else message
    hint = nearest(str(first["input"]), [*LOSS_ALIASES, *LossName.__args__]) if key == "loss.name" else ""  # type: ignore[attr-defined]
    return f"{key}: expected {message}, got {first['input']!r}{hint}"
