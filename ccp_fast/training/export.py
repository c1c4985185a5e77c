"""Trained networks as files, and back: `best.safetensors` holds tensors, and the settings in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ccp_fast._checks import Normalize
from ccp_fast._system.files import write_atomically
from ccp_fast.data import ImageSource
from ccp_fast.reference.pairs import normalise
from ccp_fast.training.config import make_config, with_settings
from ccp_fast.training.datasets import IN_MEMORY
from ccp_fast.training.errors import UserError
from ccp_fast.training.inputs import GivenPictures, NetworkInput, plain_batches
from ccp_fast.training.inputs.files import FilesInput
from ccp_fast.training.learner import best_weights
from ccp_fast.training.methods import METHODS
from ccp_fast.training.model import Network, build_network, embed
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.settings import Config

FORMAT = "ccp-fast model 1"
NAME = "best.safetensors"


class EmbeddingModel(nn.Module):
    """A trained network, or several side by side, in eval mode.

    Images ``[n, c, h, w]`` as `input` says to vectors ``[n, dim]``, to be compared by Euclidean distance: normalised
    as in training, those of several networks one after the other.

    Attributes:
        input: the images it wants; `prepare` makes them of photographs.
        config: of the run, of the first network, with the device that it is on. Of one that was trained on glyphs,
            which it saw whole, `crop` takes of a file the largest square.
    """

    def __init__(self, networks: Sequence[Network], config: Config) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.input: NetworkInput = networks[0].input
        self.config = _showing_the_whole(config, self.input) if config.data.name in IN_MEMORY else config
        self.normalize: Normalize = METHODS[config.method].normalize_of(config)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Vectors."""
        return torch.cat([normalise(network(images), self.normalize) for network in self.networks], dim=1)

    def prepare(self, images: Sequence[Any]) -> Tensor:
        """Pictures as they are seen in evaluation, float32 ``[n, channels, size, size]``: what `forward` takes.

        The shorter side is resized to `config.crop.shorter_side` pixels, and the square in the middle cut, as
        `ccp-train embed` does.

        images: paths of files, what Pillow has opened, or uint8 arrays ``[height, width]`` or ``[height, width, 3]``;
            each in any size. Of a path a JPEG is decoded smaller at once where it is twice as large as needed, and gray
            for a gray network; what is opened or decoded already differs from that by a few gray values.

        Raises ValueError for anything else, DataFileError for a file that cannot be decoded.
        """
        config = with_settings(self.config, data__workers=0)
        given = FilesInput(GivenPictures(images), config, self.input)
        return torch.cat(list(given.plain_batches(torch.arange(len(images)), max(1, len(images)))))

    def embed(self, images: ImageSource) -> Tensor:
        """Vectors of all images of a source, as they are seen in evaluation."""
        return embed(self, plain_batches(images, self.config, self.input))

    def embed_for_retrieval(self, images: ImageSource) -> Tensor:
        """As `embed`, but one network's not normalised: `retrieval` does it, to the same bits as in training."""
        if len(self.networks) > 1:
            return self.embed(images)
        return embed(self.networks[0], plain_batches(images, self.config, self.input))

    @property
    def retrieval_normalize(self) -> Normalize:
        """What is left to normalise of `embed_for_retrieval`."""
        return self.normalize if len(self.networks) == 1 else None


def _showing_the_whole(config: Config, wanted: NetworkInput) -> Config:
    return with_settings(
        config, crop__shorter_side=wanted.size, crop__least=min(config.crop.least, wanted.size)
    )


def export(path: Path, weights: Mapping[str, Tensor], config: Config, step: int) -> None:
    """Write a network's state with the settings of its run. CannotWrite where there is no room."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    header = {"format": FORMAT, "config": config.model_dump_json(), "step": str(step)}
    write_atomically(path, save(tensors, header))


def load_model(path: str | Path, device: str = "cpu", step: int | None = None) -> EmbeddingModel:
    """The model of a run, or of a file that a run left: of an unfinished run the best so far.

    Of a run that trained several networks all of them, concatenated. Nothing in a file is executed.

    step: of a run, as it was then, if that checkpoint is still there; None: as it is reported.

    Raises UserError for a path that is neither, or a damaged file.
    """
    path = Path(path)
    if step is not None and not path.is_dir():
        raise UserError(f"step: expected the folder of a run, got {path}")
    parts = RunFolder.open(path).networks() if path.is_dir() else [path]
    loaded = [_network(part, device, step) for part in parts]
    return EmbeddingModel([network for network, _ in loaded], loaded[0][1])


def _network(path: Path, device: str, step: int | None) -> tuple[Network, Config]:
    if path.is_dir():
        if step is not None:
            return _at(RunFolder.open(path), step, device)
        if not (path / NAME).is_file():
            return _best_so_far(RunFolder.open(path), device)
        path = path / NAME
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if header.get("format") != FORMAT:
        raise UserError(f"{path}: expected a network that ccp-train exported, got something else")
    return _with_weights(make_config(json.loads(header["config"]), f"{path}: "), tensors, device)


def _best_so_far(run: RunFolder, device: str) -> tuple[Network, Config]:
    latest = run.latest()
    if latest is None or latest.best_step is None:
        raise UserError(f"{run.path} has no network yet: it was not evaluated so far")
    return _at(run, latest.best_step, device)


def _at(run: RunFolder, step: int, device: str) -> tuple[Network, Config]:
    state = run.at(step).state["learner"]
    return _with_weights(run.config, best_weights(state), device)


def _with_weights(config: Config, tensors: dict[str, Tensor], device: str) -> tuple[Network, Config]:
    config = with_settings(config, compute__device=device)
    network = build_network(config.model, config.compute, pretrained=False)
    network.load_state_dict(tensors)
    return network, config
