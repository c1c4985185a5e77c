"""Templates to HTML, every text escaped."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

_TEMPLATES = Environment(
    loader=PackageLoader("ccp_fast.training.report", "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """A page. What is no UTF-8 in names of files shows as in Python."""
    page = _TEMPLATES.get_template(template).render(values)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")
