"""Matplotlib figures as inline SVG that follows the page's light or dark colours."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_INK = "#123456"  # stands for the page's text colour; no line has it by chance
ACCENT, SECOND, THIRD, FAINT = "#2f7de1", "#e07b39", "#3aa76d", "#8a94a6"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


class Drawing:
    """A figure to draw into; `markup` holds it once the `with` of `drawing` is left."""

    def __init__(self, figure: Figure, axes: list[Axes]) -> None:
        self.figure, self.axes = figure, axes
        self.markup = Markup()


@contextmanager
def drawing(name: str, width: float = 5.4, height: float = 3.1, panels: int = 1) -> Iterator[Drawing]:
    """A figure of panels side by side, in inches; `name` keeps the ids of two figures on a page apart."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        result = Drawing(figure, list(figure.subplots(1, panels, squeeze=False)[0]))
        yield result
        file = io.StringIO()
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    body = file.getvalue()
    body = body[body.index("<svg") :].replace(_INK, "currentColor")
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'id="([^"#]*)"', rf'id="{name}-\1"', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{name}-", body)
    body = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", body)
    body = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", body)
    result.markup = Markup(body)  # made here, and matplotlib escapes the texts
