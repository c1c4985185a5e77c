"""What tests of whole training runs share."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny_training
from helpers import assert_same_state

from ccp_fast.training import datasets
from ccp_fast.training.display import Display
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.run_folder import RunFolder

QUIET = Display(quiet=True)


@pytest.fixture(autouse=True)
def tiny_data(monkeypatch: pytest.MonkeyPatch, torch_as_it_was: None) -> None:
    monkeypatch.setattr(datasets, "glyphs", tiny_training.images)


MEASURED = ("seconds", "milliseconds", "pool_milliseconds", "peak_memory_bytes")


def without_times(value: Any) -> Any:
    """A copy of rows or a summary without what differs from one run to the next."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in MEASURED}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def assert_same_results(a: Path, b: Path) -> None:
    """Equal to the bit: every row, the final numbers, and the whole state after the last step."""
    for name in ("metrics", "subproblems"):
        assert without_times(read_rows(a / f"{name}.jsonl")) == without_times(read_rows(b / f"{name}.jsonl"))
    runs = RunFolder.open(a), RunFolder.open(b)
    assert without_times(runs[0].summary) == without_times(runs[1].summary)
    states = [run.latest() for run in runs]
    assert states[0] is not None
    assert states[1] is not None
    assert states[0].step == states[1].step
    assert_same_state(states[0].state["learner"], states[1].state["learner"])


class Page(HTMLParser):
    """Counts tags and collects what would be loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href") and not (value or "").startswith(("data:", "#")):
                self.loaded.append(value or "")


def check_page(text: str) -> Page:
    page = Page()
    page.feed(text)
    assert page.loaded == []  # self-contained
    assert "script" not in page.tags
    assert len(set(page.ids)) == len(page.ids)
    return page
