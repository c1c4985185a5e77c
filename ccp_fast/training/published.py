"""What a run takes where nothing else was said: the defaults that a loss was published with.

They depend on more than one setting, and may change here; so a run stores what it took.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ccp_fast.training.config import with_settings
from ccp_fast.training.settings import Config

# Losses whose proxies learn at a hundred times the network's rate: Proxy-Anchor (arXiv 2003.13911), ProxyNCA++
# (2004.01113) and SoftTriple (1909.05235).
FASTER_PROXIES = frozenset({"proxy_nca", "proxy_anchor", "soft_triple"})

# Of margin_softmax by its kind, beside those of ArcFace (arXiv 1801.07698), which are the loss's own: the temperature
# .05 of the normalised softmax (1811.12649), and CosFace's margin (1801.09414).
ByKind = Mapping[object, dict[str, float]]
PUBLISHED: ByKind = {"none": {"scale": 20.0}, "cosface": {"margin": 0.35}}
BEFORE: ByKind = {"none": {"scale": 64.0}, "cosface": {"margin": 0.5}}  # they depended on the kind


def rate_of_proxies(config: Config) -> Literal["same", "hundredfold"]:
    """What `optimizer.proxies` is, or stands for where it is "auto"."""
    if config.optimizer.proxies != "auto":
        return config.optimizer.proxies
    faster = config.method == "plain" and config.loss.name in FASTER_PROXIES
    return "hundredfold" if faster else "same"


def settled(config: Config) -> Config:
    """The configuration with what is published in place of what was left open; what was said stays."""
    return _filled(config, rate_of_proxies(config), PUBLISHED)


def as_stored(config: Config) -> Config:
    """That of a run's folder: what an old one left open is what was the default then."""
    proxies = config.optimizer.proxies
    return _filled(config, "same" if proxies == "auto" else proxies, BEFORE)


def _filled(config: Config, proxies: str, by_kind: ByKind) -> Config:
    options = dict(config.loss.options)
    if config.loss.name == "margin_softmax":
        given = config.loss.given_options
        options |= {k: v for k, v in by_kind.get(given.get("kind"), {}).items() if k not in given}
    return with_settings(config, optimizer__proxies=proxies, loss__options=options)
