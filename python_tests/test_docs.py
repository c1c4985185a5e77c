"""The guide: its code runs, its tables of defaults are the code's, everything public has a place, and it builds."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers import one_thread  # noqa: F401

import ccp_fast
from ccp_fast import _loss_options, distributed, functional, losses, nn, samplers

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(p for p in DOCS.rglob("*.md") if p.parent.name != "figures")]

BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.M | re.S)
# A comment in front of a table: whose defaults it has.
DEFAULTS = re.compile(r"^% defaults: (?P<of>\S+)\n\n(?P<table>(?:^\|.*\n)+)", re.M)
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?:`(?P<default>[^`]+)`|required) \|", re.M)

# Of every loss, in docs/losses/index.md.
SHARED = {"anchors", "references", "labels", "reference_labels", "exclude_self"}
COMMON = {"normalize", "reduction", "anchor"}  # whose defaults a loss's own table may leave out

needs_trainer = pytest.mark.skipif(
    importlib.util.find_spec("pydantic") is None, reason="ccp-train needs the extra [train]"
)


class Table(NamedTuple):
    page: Path
    of: str  # dotted name
    rows: dict[str, str | None]


def name_of(page: Path) -> str:
    return str(page.relative_to(DOCS if page.is_relative_to(DOCS) else DOCS.parent))


def blocks(page: Path, kind: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [m["code"] for m in BLOCK.finditer(text) if m["kind"] == kind]


def tables() -> list[Table]:
    return [
        Table(page, m["of"], {row["name"]: row["default"] for row in ROW.finditer(m["table"])})
        for page in PAGES
        for m in DEFAULTS.finditer(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=name_of)
def test_code_runs(page: Path) -> None:
    """The blocks of a page one after the other, as a reader would paste them."""
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), scope)


def commands() -> list[Any]:
    found = []
    for page in PAGES:
        lines = "".join(blocks(page, "bash")).splitlines()
        found += [pytest.param(x, id=f"{name_of(page)}: {x}") for x in lines if x.startswith("ccp-train")]
    return found


@needs_trainer
@pytest.mark.parametrize("line", commands())
def test_commands_are_understood(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.main import get_command
    from typer.testing import CliRunner

    from ccp_fast.cli.train_command import app

    monkeypatch.chdir(DOCS.parent)
    arguments = shlex.split(line)[1:]
    group = get_command(app)
    if arguments and arguments[0] in group.commands:  # parsed, not run: there is no such run
        group.commands[arguments[0]].make_context(arguments[0], arguments[1:])
        return
    result = CliRunner().invoke(app, [*arguments, "--show-config"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("table", tables(), ids=lambda t: f"{name_of(t.page)}: {t.of}")
def test_defaults_are_those_of_the_code(table: Table) -> None:
    if ".training." in table.of:
        pytest.importorskip("pydantic", reason="ccp-train needs the extra [train]")
    parameters = inspect.signature(pkgutil.resolve_name(table.of)).parameters
    for name, default in table.rows.items():
        expected = parameters[name].default
        if default is None:
            assert expected is inspect.Parameter.empty, name
        else:
            assert eval(default, {"torch": torch}) == expected, name
    if ".training." not in table.of:  # of a section of settings a page may show some
        assert parameters.keys() - table.rows.keys() - SHARED - COMMON == set()


def code_lines(file: Path) -> int:
    comment = "#" if file.suffix == ".py" else "//"
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    return sum(1 for line in lines if line and not line.startswith(comment))


def lines_beside(stem: str) -> int:
    """Of all files of that name but the emulator's."""
    places = (DOCS.parent / "ccp_fast", DOCS.parent / "csrc")
    files = [f for place in places for f in place.rglob(f"{stem}.*") if "host_emu" not in f.parts]
    return sum(code_lines(f) for f in files if f.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"})


def test_lines_that_each_loss_took() -> None:
    """The table of docs/engine.md counts the code that there is."""
    section = (DOCS / "engine.md").read_text(encoding="utf-8").partition("## What each loss took")[2]
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (.*?) ?\| (.*?) ?\| (\d+) \| (\d+) \|$", section, re.M)
    structs = DOCS.parent / "csrc" / "losses"
    registry = (structs / "registry.h").read_text(encoding="utf-8")
    assert {name for name, *_ in rows} == set(functional.__all__) & {
        p.stem for p in (DOCS / "losses").glob("*.md")
    }
    for name, struct, bases, beside, function, _ in rows:
        file = "lifted" if name == "lifted_structure" else name
        assert code_lines(structs / f"{file}.h") == int(struct), name
        for base, count in re.findall(r"`(\w+)` (\d+)", bases):
            assert code_lines(structs / f"{base}.h") == int(count), base
        for stem, count in re.findall(r"`(\w+)` (\d+)", beside):
            assert lines_beside(stem) == int(count), stem
        lines = (inspect.getsourcelines(getattr(part, name))[0] for part in (functional, _loss_options))
        assert sum(map(len, lines)) == int(function), name
    assert sum(int(entries) for *_, entries in rows) == len(re.findall(r"^  X\(", registry, re.M))


LOSSES, METHODS = (
    sorted(p for p in (DOCS / kind).glob("*.md") if p.stem != "index") for kind in ("losses", "methods")
)


@pytest.mark.parametrize("page", [*LOSSES, *METHODS], ids=lambda p: p.stem)
def test_a_page_has_all_its_parts(page: Path) -> None:
    """With what was published, a figure, and how to have it from `ccp-train`."""
    text = page.read_text(encoding="utf-8")
    for part in ("Formula", "When", "Knobs", "At the extremes", "Use it", "Source"):
        assert f"\n## {part}\n" in text
    of = f"functional.{page.stem}\n" if page in LOSSES else ""
    assert f"% defaults: ccp_fast.{of}" in text
    assert re.search(r"^Published\b", text, re.M)
    assert re.search(r"^:::{measured} \w+$", text, re.M)
    assert any("ccp-train" in code for code in blocks(page, "bash"))


@pytest.mark.parametrize(
    "module", [ccp_fast, distributed, functional, losses, samplers, nn], ids=lambda m: m.__name__
)
def test_every_public_name_has_a_place(module: Any) -> None:
    """In a page that was written, not only in the reference that is made from docstrings."""
    written = "\n".join(
        page.read_text(encoding="utf-8")
        for page in PAGES
        if page.parent.name != "api" and page.name != "changelog.md"
    )
    missing = [n for n in module.__all__ if not n.startswith("__") and not re.search(rf"\b{n}\b", written)]
    assert missing == []


@pytest.mark.parametrize("name", sorted({*losses.__all__} - {"MetricLoss"}))
def test_every_loss_has_a_page(name: str) -> None:
    pages = [page.read_text(encoding="utf-8") for page in PAGES if page.parent.name == "losses"]
    assert sum(f"ccp_fast.losses.{name}`" in text for text in pages) == 1


@needs_trainer
def test_every_part_of_the_trainer_has_a_place() -> None:
    """Those that are public are in the reference, and those alone."""
    from ccp_fast import training

    text = (DOCS / "api" / "training.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\.\. auto\w+:: (\w+)", text, re.M)) == sorted(training.__all__)


@pytest.mark.slow
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    for module in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(module, reason="pip install 'ccp-fast[docs]'")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "-q",
        "-E",
        "-b",
        "html",
        str(DOCS),
        str(tmp_path / "html"),
    ]
    done = subprocess.run([*command, "-d", str(tmp_path / "doctrees")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "html" / "api" / "functional.html").read_text(encoding="utf-8")
    for name in functional.__all__:
        assert f'id="ccp_fast.functional.{name}"' in page
