"""Settings from files and command lines: read, changed, compared and shown."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ccp_fast.training.errors import UserError
from ccp_fast.training.settings import LOSS_ALIASES, Config, LossName, Section

_WIDTH = 100  # of a setting with its comment


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
    """`to_yaml` with what every setting means."""
    return "\n".join(_explained(config, "")) + "\n"


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


def _explained(section: Section, indent: str) -> Iterator[str]:
    stored = section.model_dump(mode="json")
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _comment(type(value).__doc__, indent)
            yield f"{indent}{name}:"
            yield from _explained(value, indent + "  ")
            continue
        lines = yaml.safe_dump({name: stored[name]}, allow_unicode=True).splitlines()
        beside = f"{lines[0]}  # {field.description}"
        if field.description and len(lines) == 1 and len(indent + beside) <= _WIDTH:
            yield indent + beside
        else:
            yield from _comment(field.description, indent)
            yield from (indent + line for line in lines)


def _comment(text: str | None, indent: str) -> Iterator[str]:
    for line in inspect.cleandoc(text or "").splitlines():
        yield f"{indent}# {line}".rstrip()


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
