"""The packages of a machine with a GPU, which is not everything that the tests know of, and what they come with."""

from __future__ import annotations

import re
from importlib import metadata

PACKAGES = (
    "torch", "cmake", "ninja", "pybind11", "scikit-build-core", "typer", "rich", "jinja2", "numpy", "scipy",
    "matplotlib", "timm", "lightning", "pytest", "pytest-timeout", "pytest-xdist", "hypothesis", "safetensors",
    "triton", "pip",
)  # fmt: skip
# Not there, though a package above may bring it in other places.
ABSENT = ("pydantic", "pydantic-core", "faiss-cpu", "pytorch-metric-learning")

# To be executed first by an interpreter: nothing in `blocked` can be imported from then on. But Typer may: releases
# since that machine's need pydantic themselves, once a command begins.
BLOCK = """
import sys
def asked_by_typer():
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] != "typer":
        frame = frame.f_back
    return frame is not None
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r} and not asked_by_typer():
            return None
        return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def block() -> str:
    """The program that leaves those packages, and what they require, as far as it is installed here."""
    return BLOCK.format(blocked=blocked())


def blocked() -> set[str]:
    """Top-level modules of all other packages."""
    kept: set[str] = set()

    def keep(name: str) -> None:
        if name in kept or name in map(_plain, ABSENT):
            return
        try:
            requirements = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            return
        kept.add(name)
        for requirement in requirements:
            if "extra ==" not in requirement:
                keep(_plain(re.match(r"[\w.-]+", requirement)[0]))

    for package in PACKAGES:
        keep(_plain(package))
    modules = metadata.packages_distributions()
    return {
        module
        for module, packages in modules.items()
        if not any(_plain(package) in kept or _plain(package) == "ccp-fast" for package in packages)
    }


def _plain(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
