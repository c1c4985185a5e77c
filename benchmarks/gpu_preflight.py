"""Is everything here that gpu_check.sh needs? If not, one sentence says what is missing, and the status is 1.

    python benchmarks/gpu_preflight.py              before the build: programs and packages
    python benchmarks/gpu_preflight.py --installed  after it: everything that the steps import

Needs nothing itself.
"""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

PROGRAMS = ("nvcc", "compute-sanitizer", "cmake", "ninja", "timeout")
PACKAGES = ("torch", "numpy", "pip", "scikit_build_core", "pybind11", "pytest", "hypothesis", "typer", "rich")
# What the steps begin with: the package, `ccp-info`, `ccp-bench gpu`, the sanitizers' program, the tests of the GPU.
IMPORTS = ("ccp_fast", "ccp_fast_info", "ccp_fast.bench.main", "ccp_fast.bench.command")
FILES = ("benchmarks/gpu_small_cases.py", "python_tests/test_gpu.py", "python_tests/test_gpu_torch.py")


def missing_for_the_build() -> list[str]:
    """Programs that are not found, which Python packages may bring, and packages that no import would find."""
    programs = [name for name in PROGRAMS if shutil.which(name) is None and find_spec(name) is None]
    return programs + [f"the package {name}" for name in PACKAGES if find_spec(name) is None]


def missing_for_the_steps() -> list[str]:
    """What cannot be imported, and for want of what."""
    sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "python_tests")]
    found = []
    for name in (*IMPORTS, *(Path(file).stem for file in FILES)):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            found.append(f"{error.name}, which {name} imports")
        except Exception as error:  # whatever it is, the step would end with it
            found.append(f"{name}, which raised {type(error).__name__}: {error}")
    return found


def main() -> int:
    missing = missing_for_the_steps() if sys.argv[1:] == ["--installed"] else missing_for_the_build()
    if missing:
        print(f"these are missing: {'; '.join(missing)}")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
