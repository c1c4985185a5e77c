"""Backbones of `timm` (pip install 'ccp-fast[timm]'), with weights that are on this machine already."""

from __future__ import annotations

import difflib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ccp_fast.training.errors import UserError
from ccp_fast.training.inputs import NetworkInput
from ccp_fast.training.model.weights import Weights


class TimmTrunk(nn.Module):
    """Images to feature maps ``[n, c, h, w]`` or, of a transformer, to tokens ``[n, t, c]``, the special ones first."""

    def __init__(self, name: str, size: int | None, weights: Weights | None) -> None:
        super().__init__()
        timm, settings = _timm_knows(name)
        options: dict[str, Any] = {"pretrained": False}
        if settings.fixed_input_size and size is not None:
            options["img_size"] = size
        if weights is not None:  # as timm loads its own, which resamples positions where sizes differ
            options |= {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": weights.tensors}}
        try:  # with the classifier of the published weights: timm checks names only if it has all of them
            self.model = timm.create_model(name, num_classes=settings.num_classes, **options)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            where = weights.path if weights is not None else name
            raise UserError(f"model.weights: {where} does not fit timm's {name}: {reason}") from None
        self.model.reset_classifier(0, "")
        self.model.pretrained_cfg.pop("state_dict", None)
        channels, usual_size, _ = settings.input_size
        self.input = NetworkInput(channels, size or usual_size, tuple(settings.mean), tuple(settings.std))
        self.width: int = self.model.num_features
        self.prefix_tokens: int = getattr(self.model, "num_prefix_tokens", 0)

    def forward(self, images: Tensor) -> Tensor:
        """Features."""
        features: Tensor = self.model(images)
        return features


def cached_weights(name: str) -> Path:
    """What timm publishes for a model, out of the caches of Hugging Face or torch; nothing is fetched.

    Raises UserError that names the places that were looked at.
    """
    settings = _timm_knows(name)[1]
    looked = []
    if settings.hf_hub_id:
        from huggingface_hub import try_to_load_from_cache

        for file in (settings.hf_hub_filename, "model.safetensors", "pytorch_model.bin"):
            found = try_to_load_from_cache(settings.hf_hub_id, file) if file else None
            if isinstance(found, str):
                return Path(found)
        looked.append(f"{settings.hf_hub_id} in the Hugging Face cache")
    if settings.url:
        path = Path(torch.hub.get_dir()) / "checkpoints" / Path(settings.url).name
        if path.is_file():
            return path
        looked.append(str(path))
    raise UserError(
        f"model.weights: no weights of {name} are on this machine (looked for "
        f"{' and '.join(looked) or 'any published ones'}); put them there, give a file, or 'random'"
    )


def _timm_knows(name: str) -> tuple[ModuleType, Any]:
    """The module, and what it knows of a model; UserError if either is not there."""
    try:
        import timm
    except (
        ImportError,
        RuntimeError,
    ) as error:  # RuntimeError: a torchvision that was built for another torch
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.name: timm cannot be imported ({reason}): pip install 'ccp-fast[timm]'"
        ) from None
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean 'timm:{close[0]}'?" if close else ""
        raise UserError(f"model.name: timm has no model {name!r}{hint}")
    return timm, timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
