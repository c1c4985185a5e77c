"""The runs behind the guide: one for every method of the package on `glyphs`, all under the same budget.

They lie in one folder, NAME-seedS as `ccp-train` leaves them: a finished one is used again, an interrupted one goes on.
Each has one thread, and is the same to the bit on the same kind of processor.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ccp_fast.training.compare import run_in_a_process
from ccp_fast.training.config import load_config
from ccp_fast.training.errors import UserError
from ccp_fast.training.published import settled
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.settings import Config

FOLDER = Path("runs/guide")
STEPS = 4000
SEEDS = (0, 1, 2)


class Run(NamedTuple):
    """What to train, and what it is called."""

    title: str
    loss: str | None
    method: str = "plain"
    settings: tuple[str, ...] = ()

    def arguments(self, steps: int, seed: int = 0) -> list[str]:
        """Of `ccp-train`."""
        loss = [] if self.loss is None else ["--loss", self.loss]
        settings = [word for setting in self.settings for word in ("--set", setting)]
        fixed = ["--method", self.method, "--steps", str(steps), "--seed", str(seed), "--threads", "1"]
        return [*loss, *fixed, *settings]

    def command(self, steps: int, seed: int = 0) -> str:
        """For a shell."""
        return shlex.join(["ccp-train", *self.arguments(steps, seed)])

    def config(self, steps: int, seed: int = 0) -> Config:
        """The same as a configuration."""
        flags = {"loss.name": self.loss, "method": self.method, "steps": steps, "seed": seed, "threads": 1}
        return settled(load_config(settings=self.settings, flags=flags))


SAME = ("optimizer.proxies=same",)
FASTER = ("optimizer.proxies=hundredfold",)
ONCE = ("ccp.reinitialize=false", "ccp.lam=0")
RUNS = {
    "c1": Run("C1", "c1"),
    "c2": Run("C2", "c2"),
    "triplet": Run("triplet", "triplet"),
    "multi_similarity": Run("Multi-Similarity", "multi_similarity"),
    "lifted_structure": Run("lifted structure, per anchor", "lifted_structure"),
    "lifted_structure-pair": Run(
        "lifted structure, as published", "lifted_structure", settings=("loss.options.variant=pair",)
    ),
    "proxy_nca": Run("ProxyNCA++", "proxy_nca", settings=SAME),
    "proxy_nca-100": Run("ProxyNCA++, proxies at 100x", "proxy_nca", settings=FASTER),
    "proxy_anchor": Run("Proxy-Anchor", "proxy_anchor", settings=SAME),
    "proxy_anchor-100": Run("Proxy-Anchor, proxies at 100x", "proxy_anchor", settings=FASTER),
    "proxy_nca-original": Run(
        "Proxy-NCA, the original",
        "proxy_nca",
        settings=(*SAME, "loss.options.variant=original", "loss.options.temperature=1"),
    ),
    "soft_triple": Run("SoftTriple", "soft_triple", settings=SAME),
    "soft_triple-100": Run("SoftTriple, proxies at 100x", "soft_triple", settings=FASTER),
    "arcface": Run("ArcFace", "margin_softmax"),
    "subcenter": Run("ArcFace, 3 sub-centres", "margin_softmax", settings=("loss.proxies_per_class=3",)),
    "cosface": Run(
        "CosFace", "margin_softmax", settings=("loss.options.kind=cosface", "loss.options.margin=0.35")
    ),
    "normface": Run(
        "NormFace, scale 16", "margin_softmax", settings=("loss.options.kind=none", "loss.options.scale=16")
    ),
    "c2-proxies": Run("C2, proxies chosen once", "c2", "ccp", ONCE),
    "c2-ccp": Run("C2, CCP", "c2", "ccp"),
    "c2-alternating": Run("C2, alternating projections", "c2", "alternating"),
    "c2-xbm": Run("C2, memory", "c2", "xbm"),
    "multi_similarity-proxies": Run("Multi-Similarity, proxies chosen once", "multi_similarity", "ccp", ONCE),
    "multi_similarity-alternating": Run(
        "Multi-Similarity, alternating projections", "multi_similarity", "alternating"
    ),
    "multi_similarity-xbm": Run("Multi-Similarity, memory", "multi_similarity", "xbm"),
    "intra-batch": Run("message passing", None, "intra-batch"),
}


class Finished(NamedTuple):
    """A run to report on."""

    title: str
    command: str
    run: RunFolder


def obtain(
    name: str,
    run: Run,
    steps: int,
    folder: Path,
    *,
    seed: int = 0,
    train: Callable[[Config, Path], None] | None = run_in_a_process,
) -> Finished | None:
    """The finished run, trained or gone on with where it has to be; None if there is none and `train` is None.

    Raises UserError for settings that do not exist, and for a run of that name with others.
    """
    path, command = folder / f"{name}-seed{seed}", run.command(steps, seed)
    config = run.config(steps, seed)
    if path.exists() and RunFolder.open(path).config != config:
        raise UserError(f"{path} was made with other settings than {command}: give --steps or --runs")
    if not path.exists() or RunFolder.open(path).summary is None:
        if train is None:
            return None
        train(config, path)
    return Finished(run.title, command, RunFolder.open(path))
