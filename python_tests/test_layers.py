"""Layers: what a part of the package brings along when it is imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DISTRIBUTIONS = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}  # of packages that have another name

TRAINER = ("ccp_fast.training", "ccp_fast.cli", "pydantic", "safetensors", "typer", "yaml")


def loaded_by(*modules: str) -> set[str]:
    """Names of all modules in a process that imports these."""
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        (("ccp_fast", "ccp_fast.distributed"), (*TRAINER, "sklearn", "scipy", "PIL", "rich", "ccp_fast._system")),
        (("ccp_fast.data",), (*TRAINER, "sklearn", "scipy", "PIL", "rich")),
        (("ccp_fast.data.glyphs_large.build",), (*TRAINER, "sklearn", "scipy", "rich")),
        (("ccp_fast.bench.machine", "ccp_fast.bench.gpu.machine"), TRAINER),
        (
            tuple(f"ccp_fast._system.{name}" for name in ("environment", "errors", "files", "lock")),
            (*TRAINER, "ccp_fast.data", "ccp_fast.bench"),
        ),
    ],
    ids=lambda names: names[0],
)  # fmt: skip
def test_imports_bring_nothing_from_above(modules: tuple[str, ...], without: tuple[str, ...]) -> None:
    if "ccp_fast.data.glyphs_large.build" in modules:
        pytest.importorskip("PIL", reason="drawing needs Pillow")
    loaded = loaded_by(*modules)
    assert set(modules) <= loaded
    assert not {
        name for name in loaded if name in without or name.startswith(tuple(f"{w}." for w in without))
    }


def test_what_the_trainer_imports_is_among_what_its_extra_installs() -> None:
    """Also what another of its requirements happens to bring."""
    tomllib = pytest.importorskip("tomllib", reason="reading pyproject.toml needs Python 3.11")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    installed = {re.split(r"[^\w-]", line)[0] for line in required}
    files = [
        file for part in ("cli", "data", "training") for file in (ROOT / "ccp_fast" / part).rglob("*.py")
    ]
    imported = {name for file in files for name in imports_of(file)} - sys.stdlib_module_names - {"ccp_fast"}
    assert "torch" in imported
    assert {DISTRIBUTIONS.get(name, name) for name in imported} <= installed


def imports_of(file: Path) -> Iterator[str]:
    """Packages that a module imports when it is imported itself."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").split(".")[0]
