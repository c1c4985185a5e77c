"""Tables that commands write into pages, each between two marks."""

from __future__ import annotations

from pathlib import Path

from ccp_fast._system.files import write_atomically
from ccp_fast.training.errors import UserError

NOT_YET = "Not run yet.\n"


def put(name: str, text: str, page: str) -> str:
    """The page with `text` between the marks of that name."""
    marks = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise UserError(f"the page: expected the lines {marks[0].strip()} and {marks[1].strip()}")
    return f"{before}{begin}\n{text}\n{end}{after}"


def put_into(path: Path, name: str, text: str) -> None:
    """The same, in a file."""
    write_atomically(path, put(name, text, path.read_text(encoding="utf-8")))
