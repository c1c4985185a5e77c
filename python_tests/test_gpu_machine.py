"""What gpu_check.sh runs begins with the packages of the machine with a GPU, which are fewer than here."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import gpu_machine
import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(program: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """In an interpreter that has those packages alone."""
    folders = [str(ROOT / "python_tests"), *sys.path]
    return subprocess.run(
        [sys.executable, "-c", f"{gpu_machine.block()}\n{program}", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_other_packages_are_kept_out() -> None:
    others = {"pydantic", "pytorch_metric_learning", "sklearn", "faiss"}
    if importlib.util.find_spec("faiss") is None:  # of an extra that the tests do without
        others.remove("faiss")
    assert gpu_machine.blocked() >= others
    assert gpu_machine.blocked().isdisjoint(
        {"torch", "numpy", "typer", "rich", "pytest", "hypothesis", "ccp_fast"}
    )
    done = run("import pydantic")
    assert "ModuleNotFoundError: No module named 'pydantic'" in done.stderr


START = """
import runpy, sys
sys.argv = ["gpu_preflight.py", "--installed"]
try:
    runpy.run_path("benchmarks/gpu_preflight.py", run_name="__main__")
except SystemExit as done:
    print("imports:", done.code)
sys.argv = ["ccp-bench", "gpu", "--only", "nothing"]
from ccp_fast.bench.main import main
main()
"""


def test_every_step_imports_what_is_there_and_the_benchmarks_start() -> None:
    done = run(START)
    assert done.stdout == "imports: 0\n", done.stderr
    assert done.stderr.startswith("--only: expected some of ")
    assert done.returncode == 2


def test_what_is_missing_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_preflight

    def import_module(name: str) -> None:
        if name == "test_gpu":
            raise ModuleNotFoundError("No module named 'hypothesis'", name="hypothesis")
        if name == "ccp_fast":
            raise ImportError("the operators do not load")

    monkeypatch.setattr(gpu_preflight, "import_module", import_module)
    monkeypatch.setattr(sys, "argv", ["gpu_preflight.py", "--installed"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert gpu_preflight.main() == 1
    assert capsys.readouterr().out == (
        "these are missing: ccp_fast, which raised ImportError: the operators do not load; "
        "hypothesis, which test_gpu imports\n"
    )


@pytest.mark.slow
def test_every_test_file_is_collected_or_says_what_it_needs() -> None:
    options = ["--collect-only", "-q", "-m", "", "-rs", "-p", "no:cacheprovider", "python_tests"]
    done = run(f"import pytest, sys\nsys.exit(pytest.main({options!r}))", timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "python_tests/test_training.py:0: needs " in done.stdout
    assert "python_tests/test_gpu.py:" in done.stdout
