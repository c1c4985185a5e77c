"""What a run takes where nothing else was said: the defaults that a loss was published with.

They depend on more than one setting, and may change here; so a run stores what it took.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ccp_fast.training.config import with_settings
from ccp_fast.training.settings import Config

# Losses whose proxies customarily learn at a hundred times the network's rate: Proxy-Anchor (arXiv 2003.13911),
# ProxyNCA++ (2004.01113; its code has a far higher rate) and SoftTriple (1909.05235; no epoch for the proxies alone).
FASTER_PROXIES = frozenset({"proxy_nca", "proxy_anchor", "soft_triple"})

# Options that were published for one form of a loss, by the option that names the form, beside those of the others,
# which are the loss's own: the temperature .05 of the normalised softmax (1811.12649), CosFace's margin (1801.09414),
# and no temperature in the first Proxy-NCA (1703.07464).
Forms = Mapping[str, tuple[str, Mapping[object, dict[str, float]]]]
PUBLISHED: Forms = {
    "margin_softmax": ("kind", {"none": {"scale": 20.0}, "cosface": {"margin": 0.35}}),
    "proxy_nca": ("variant", {"original": {"temperature": 1.0}}),
}
BEFORE: Forms = {  # when they did not depend on the form
    "margin_softmax": ("kind", {"none": {"scale": 64.0}, "cosface": {"margin": 0.5}}),
    "proxy_nca": ("variant", {"original": {"temperature": 1 / 9}}),
}


def rate_of_proxies(config: Config) -> Literal["same", "hundredfold"]:
    """What `optimizer.proxies` is, or stands for where it is "auto"."""
    if config.optimizer.proxies != "auto":
        return config.optimizer.proxies
    original = config.loss.given_options.get("variant") == "original"  # Proxy-NCA before ++
    faster = config.method == "plain" and config.loss.name in FASTER_PROXIES and not original
    return "hundredfold" if faster else "same"


def settled(config: Config) -> Config:
    """The configuration with what is published in place of what was left open; what was said stays."""
    return _filled(config, rate_of_proxies(config), PUBLISHED)


def as_stored(config: Config) -> Config:
    """That of a run's folder: what an old one left open is what was the default then."""
    proxies = config.optimizer.proxies
    return _filled(config, "same" if proxies == "auto" else proxies, BEFORE)


def _filled(config: Config, proxies: str, forms: Forms) -> Config:
    options, given = dict(config.loss.options), config.loss.given_options
    if config.loss.name in forms:
        option, by_form = forms[config.loss.name]
        options |= {k: v for k, v in by_form.get(given.get(option), {}).items() if k not in given}
    return with_settings(config, optimizer__proxies=proxies, loss__options=options)
