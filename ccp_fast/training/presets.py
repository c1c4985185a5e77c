"""Settings that were published for a data set, by its name: what `ccp-train` begins with in place of the defaults."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ccp_fast.training.config import given_values, make_config, merged
from ccp_fast.training.settings import Config


def configured(
    file: Path | None = None, settings: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Defaults, then the preset of the data set that is asked for, then what is given, as `load_config` takes it.

    The result holds everything: stored and read by `load_config`, it stays what it was if presets change.

    Raises UserError for a file that cannot be read, an unknown key or a bad value.
    """
    given = given_values(file, settings, flags)
    base = preset(_name(given, "data"), str(given.get("method")))
    if base and _name(given, "protocol") == "conventional":  # no class is held out that patience could go by
        base = merged(base, {"evaluation": {"patience": None}})
    return make_config(merged(base, given), "" if file is None else f"{file}: ")


def _name(given: Mapping[str, Any], section: str) -> str:
    """What is asked for in a section; nothing where that is no section."""
    values = given.get(section)
    return str(values.get("name")) if isinstance(values, Mapping) else ""


def preset(name: str, method: str = "ccp") -> dict[str, Any]:
    """Settings in sections; none for a set of glyphs, for whose network the defaults are."""
    presets = _presets()
    if name not in presets.keys() - {"every"}:
        return {}
    both = merged(presets["every"], presets[name])
    by_method = both.pop("with")
    return merged(both, by_method.get(method, {}))


@cache
def _presets() -> dict[str, Any]:
    text = files("ccp_fast.training").joinpath("presets.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
