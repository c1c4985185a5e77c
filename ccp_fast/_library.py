"""Loads the compiled operators; the one place where a broken or missing build is reported."""

from __future__ import annotations

import importlib.util
import os

import torch

_MINIMUM_TORCH = (2, 11)
_CAPABILITIES = ("portable", "avx2", "avx512")


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def load() -> str:
    """Load the operator library into torch and return its path.

    Raises:
        ImportError: the library is not there or does not load, or the environment asks for an instruction set that
            does not exist; the message says what to do.
    """
    if _torch_version() < _MINIMUM_TORCH:
        raise ImportError(
            f"ccp_fast needs torch >= {'.'.join(map(str, _MINIMUM_TORCH))}, found {torch.__version__}: "
            "pip install --upgrade torch"
        )
    wanted = os.environ.get("CCP_FAST_CPU_CAPABILITY", _CAPABILITIES[0])
    if wanted not in _CAPABILITIES:
        raise ImportError(
            f"CCP_FAST_CPU_CAPABILITY: expected {', '.join(_CAPABILITIES[:-1])} or {_CAPABILITIES[-1]}, got {wanted!r}"
        )
    spec = importlib.util.find_spec("ccp_fast._ops")
    if spec is None or spec.origin is None:
        raise ImportError(
            "ccp_fast's compiled operators (_ops.so) are missing: this is a source tree without a build. "
            "Install it with `pip install .`, or for development `pip install --no-build-isolation -e .`; Python "
            "started inside a clone takes the clone's sources before an installed package"
        )
    try:
        torch.ops.load_library(spec.origin)
    except OSError as error:
        raise ImportError(
            f"ccp_fast's compiled operators do not load into torch {torch.__version__}: {error.__cause__ or error}. "
            "Rebuild them for this environment: `pip install --force-reinstall --no-deps .`"
        ) from error
    return spec.origin


PATH = load()
