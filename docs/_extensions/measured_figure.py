"""The directive `measured`: a figure that docs/figures.py drew, or nothing where it has not been drawn yet.

:::{measured} triplet
:::

shows figures/triplet.svg with the caption that was written beside it, figures/triplet.md: which runs it shows. The
picture becomes a part of the page, so that its ink follows the page's light or dark colours.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FIGURES = Path(__file__).parents[1] / "figures"


class Measured(SphinxDirective):
    """A figure with its caption."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The nodes to insert."""
        picture, caption = (FIGURES / f"{self.arguments[0]}{suffix}" for suffix in (".svg", ".md"))
        for file in (picture, caption):
            self.env.note_dependency(str(file))
        if not (picture.exists() and caption.exists()):
            return []
        figure = nodes.figure()
        figure += nodes.raw("", picture.read_text(encoding="utf-8"), format="html")
        text, messages = self.parse_inline(caption.read_text(encoding="utf-8").strip())
        figure += nodes.caption("", "", *text)
        return [figure, *messages]


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("measured", Measured)
    return {"version": "1", "parallel_read_safe": True}
