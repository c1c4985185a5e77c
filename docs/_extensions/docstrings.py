"""Docstrings of the package as reStructuredText: they are written to be read in the source.

There an indented block is code, `|x|` is a norm and a module's docstring is a table of arguments. The pages have the
last one as a table of their own.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"\s*(Args|Arguments|Attributes|Raises|Returns|Yields|Note|Example)s?:")
_CODE = re.compile(r"(``.+?``|`[^`]+`)")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escaped(line: str) -> str:
    """Without what reStructuredText would take for a substitution, emphasis, link or list; code is left alone."""
    line = re.sub(r"((?:^|: )\s*\w)\.(?=\s|$)", r"\1\\.", line)  # "b." begins a list
    parts = _CODE.split(line)
    parts[::2] = [re.sub(r"([|*])", r"\\\1", re.sub(r"(\w)_(?!\w)", r"\1\\_", p)) for p in parts[::2]]
    return "".join(parts)


def to_rst(lines: list[str]) -> list[str]:
    """Indented blocks behind an empty line as literal blocks, the rest escaped."""
    result: list[str] = []
    in_section, literal = False, None
    for i, line in enumerate(lines):
        if literal is not None and (not line.strip() or _indent(line) >= literal):
            result.append(line)
            continue
        literal = None
        if line.strip() and not line.startswith(" "):
            in_section = bool(_SECTION.match(line))
        begins = line.startswith("    ") and not in_section and i > 0 and not lines[i - 1].strip()
        if begins:
            literal = _indent(line)
            result += ["::", "", line]
        else:
            result.append(_escaped(line))
    return result


def _process(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [] if what == "module" else to_rst(lines)


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx; before napoleon, which would take the literal blocks for sections' bodies."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"version": "1", "parallel_read_safe": True}
