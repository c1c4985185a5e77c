"""Docstrings of the package as reStructuredText: they are written to be read in the source.

There an indented block is code, columns are aligned, `|x|` is a norm and a module's docstring is a table of arguments,
which the pages have as a table of their own.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

_SECTION = re.compile(r"\s*(Args|Arguments|Attributes|Raises|Returns|Yields|Note|Example)s?:")
_FAR = 8  # columns; less is the indentation of a section's arguments
_CODE = re.compile(r"(``.+?``|`[^`]+`)")


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escaped(line: str) -> str:
    """Without what reStructuredText would take for a substitution, emphasis, link or list; code is left alone."""
    line = re.sub(r"((?:^|: )\s*\w)\.(?=\s|$)", r"\1\\.", line)  # "b." begins a list
    parts = _CODE.split(line)
    parts[::2] = [re.sub(r"([|*])", r"\\\1", re.sub(r"(\w)_(?!\w)", r"\1\\_", p)) for p in parts[::2]]
    return "".join(parts)


def _is_table(lines: list[str], start: int) -> bool:
    """Whether a paragraph has two aligned columns: the second goes on in lines of its own, far to the right."""
    for line in lines[start:]:
        if not line.strip():
            return False
        if _indent(line) >= _FAR:
            return True
    return False


def to_rst(lines: list[str]) -> list[str]:
    """Indented blocks behind an empty line as literal blocks, aligned columns as line blocks, the rest escaped."""
    result: list[str] = []
    in_section, in_table, literal = False, False, None
    for i, line in enumerate(lines):
        if literal is not None and (not line.strip() or _indent(line) >= literal):
            result.append(line)
            continue
        literal = None
        begins = i == 0 or not lines[i - 1].strip()
        if line.strip() and not line.startswith(" "):
            in_section = bool(_SECTION.match(line))
        if begins:
            in_table = not in_section and not line.startswith(" ") and _is_table(lines, i)
        if in_table and line.strip():
            result.append(("  " if line.startswith(" ") else "| ") + _escaped(line.strip()))
        elif begins and line.startswith("    ") and not in_section:
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
