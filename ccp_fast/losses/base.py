"""What the loss modules share: their references, and the proxies they may own."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from ccp_fast._checks import Normalize, at_least
from ccp_fast._loss_options import check_options

Option = float | str | None


class MetricLoss(nn.Module):
    """A function of `ccp_fast.functional` with its options, and proxies if it owns any.

    A new loss is a subclass whose `__init__` names the function and its keyword arguments, as
    `contrastive.py`.

    Args:
        function: called as function(anchors, references, labels, reference_labels, **options).
        num_classes: C of the Parameter `proxies` [C, K, D]. Without num_classes and dim the loss owns none.
        dim: D.
        proxies_per_class: K. Proxies are drawn from a normal distribution of standard deviation 1/√D: norms
            are about 1. They stay as they are drawn or trained; normalisation is part of the loss.
        options: keyword arguments of `function`, kept in `self.options`.

    Raises ValueError where only one of num_classes and dim is given, a size is below 1, or the function is one of
    `ccp_fast.functional` and would refuse the options.
    """

    proxies: nn.Parameter | None

    def __init__(
        self,
        function: Callable[..., Tensor],
        num_classes: int | None,
        dim: int | None,
        proxies_per_class: int,
        **options: Option,
    ) -> None:
        super().__init__()
        check_options(function, options)
        self.function = function
        self.options = options
        if (num_classes is None) != (dim is None):
            raise ValueError(f"num_classes, dim: expected both or neither, got {num_classes} and {dim}")
        for name, size in (
            ("num_classes", num_classes),
            ("dim", dim),
            ("proxies_per_class", proxies_per_class),
        ):
            if size is not None:
                at_least(name, size, 1)
        if num_classes is None or dim is None:
            self.register_parameter("proxies", None)
        else:
            self.proxies = nn.Parameter(torch.empty(num_classes, proxies_per_class, dim))
            self.reset_parameters()

    @property
    def normalize(self) -> Normalize:
        """How the loss normalises embeddings and references: "ball", "unit" or None."""
        return cast(Normalize, self.options.get("normalize"))

    def reset_parameters(self) -> None:
        """Draw the proxies anew."""
        if self.proxies is not None:
            nn.init.normal_(self.proxies, std=self.proxies.shape[2] ** -0.5)

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        exclude_self: bool = False,
    ) -> Tensor:
        """Loss of embeddings [M, D] with labels [M] int64, a scalar unless reduction="none".

        The references are ref_emb [N, D] with ref_labels [N] if given, else the proxies if the loss owns them
        (labels then lie in [0, C)), else the batch itself, each sample paired with all others. exclude_self:
        ref_emb and ref_labels begin with the batch itself, and sample i is not paired with reference i.
        """
        if isinstance(ref_emb, tuple):
            raise ValueError(
                "indices_tuple: expected no miner's tuple, since the loss goes over all pairs, "
                f"got one of {len(ref_emb)}; the third argument is ref_emb"
            )
        if (ref_emb is None) != (ref_labels is None):
            missing = "ref_emb" if ref_emb is None else "ref_labels"
            raise ValueError(f"ref_emb, ref_labels: expected both or neither, got no {missing}")
        references = self.proxies if ref_emb is None else ref_emb
        own = {"exclude_self": True} if exclude_self else {}  # a function of one's own may do without
        return self.function(embeddings, references, labels, ref_labels, **own, **self.options)

    def pairs(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The same loss within the batch, whether or not the loss owns proxies."""
        return self.function(embeddings, None, labels, None, **self.options)

    def extra_repr(self) -> str:
        """Options, then the sizes of the proxies."""
        parts = [f"{name}={value!r}" for name, value in self.options.items()]
        if self.proxies is not None:
            sizes = zip(("num_classes", "proxies_per_class", "dim"), self.proxies.shape, strict=True)
            parts += [f"{name}={size}" for name, size in sizes]
        return ", ".join(parts)
