"""Packaging, the CMake modules, and what importing the package costs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import capabilities
import numpy as np
import pytest
import torch

import ccp_fast

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(ccp_fast.__file__).parent
BUILT = dict(line.split("=", 1) for line in torch.ops.ccp_fast.build_info().splitlines())


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    """What a fresh interpreter prints that imports the same ccp_fast as this one."""
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# The package ----------------------------------------------------------------------------------------------


def test_one_version_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", ccp_fast.__version__)
    assert BUILT["version"] == ccp_fast.__version__, (
        "the operators were not rebuilt after a change of version"
    )
    try:
        installed = metadata.version("ccp-fast")
    except metadata.PackageNotFoundError:
        return  # a checkout that was built in place
    assert installed == ccp_fast.__version__


IMPORT = """
import json, sys, time
start = time.process_time()
import numpy, torch
torchs, before = time.process_time() - start, set(sys.modules)

class OnlyTorchAndNumpy:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in sys.stdlib_module_names | {"ccp_fast", "numpy", "torch"}:
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, OnlyTorchAndNumpy())
start = time.process_time()
import ccp_fast
ours = time.process_time() - start
print(json.dumps({"torch": torchs, "ccp_fast": ours, "added": sorted(set(sys.modules) - before)}))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory) -> dict:
    """A fresh `import ccp_fast` where only torch and numpy can be had: seconds, and the modules it added."""
    return json.loads(python("-c", IMPORT, cwd=tmp_path_factory.mktemp("import")))


def test_import_needs_torch_and_numpy_alone(imported):
    packages = {name.partition(".")[0] for name in imported["added"]}
    assert packages - set(sys.stdlib_module_names) <= {"ccp_fast", "numpy", "torch"}
    # Seconds each, and only torch.compile needs them.
    assert not {"torch._dynamo", "torch._inductor"} & set(imported["added"])


def test_import_costs_little_beside_torch(imported):
    assert imported["ccp_fast"] < 0.25 * imported["torch"]  # measured: 0.04


CAPABILITIES = BUILT["cpu_capabilities_built"].split(",")


@pytest.mark.parametrize("capability", CAPABILITIES[: CAPABILITIES.index(BUILT["cpu_capability"])])
def test_lesser_instruction_sets_give_the_same_losses(tmp_path, capability):
    file = tmp_path / "results.npz"
    program = str(Path(capabilities.__file__))
    used = python(program, str(file), cwd=tmp_path, CCP_FAST_CPU_CAPABILITY=capability)
    assert used.strip() == capability
    found = np.load(file)
    expected = capabilities.results()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        best = tensor.numpy()
        if name.startswith("exact"):
            np.testing.assert_array_equal(found[name], best, err_msg=name)
        else:  # another order of the sums over D products
            np.testing.assert_allclose(
                found[name], best, rtol=0, atol=1e-5 * np.abs(best).max(), err_msg=name
            )


# CMake ----------------------------------------------------------------------------------------------------


def cmake(folder: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit status and output, on one line: CMake wraps its messages."""
    path = os.pathsep.join([str(Path(sys.executable).parent), environment.pop("PATH", os.environ["PATH"])])
    program = shutil.which("cmake", path=path)
    if program is None:
        pytest.skip("needs cmake: pip install 'ccp-fast[test]'")
    inherited = {key: value for key, value in os.environ.items() if key not in NO_TOOLKIT}
    done = subprocess.run(
        [program, *arguments],
        env={**inherited, "PATH": path, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


NO_TOOLKIT = ("CUDACXX", "CUDA_HOME", "CUDA_PATH", "CCP_FAST_TORCH_DIR")


def fake_torch(folder: Path, version: str) -> Path:
    """What FindTorchHeaders looks at, and nothing else."""
    for name in ("include/torch/csrc/stable/library.h", "lib/libtorch_cpu.so", "__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "version.py").write_text(f"__all__ = ['__version__']\n__version__ = '{version}'\n")
    return folder


def find_torch(tmp_path: Path, **environment: str) -> tuple[int, str]:
    """Configures a project that finds torch and prints what it found."""
    (tmp_path / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.22)
        project(probe LANGUAGES NONE)
        set(CMAKE_FIND_LIBRARY_PREFIXES lib)
        set(CMAKE_FIND_LIBRARY_SUFFIXES .so)
        list(APPEND CMAKE_MODULE_PATH "{ROOT}/cmake")
        find_package(TorchHeaders REQUIRED)
        message(STATUS
          "found ${{TorchHeaders_VERSION}} ${{TorchHeaders_LIBRARY}} cuda=${{TorchHeaders_HAS_CUDA}}")
    """)
    interpreter = environment.pop("interpreter", sys.executable)
    return cmake(tmp_path, "-S.", "-Bbuild", f"-DPython_EXECUTABLE={interpreter}", **environment)


def bare_interpreter(folder: Path) -> str:
    """A virtual environment without torch."""
    venv.create(folder, with_pip=False, symlinks=True)
    return str(folder / "bin" / "python")


def test_torch_is_found_where_the_variable_points(tmp_path):
    torch_dir = fake_torch(tmp_path / "elsewhere", "2.12.1+cu130")
    (torch_dir / "lib" / "libtorch_cuda.so").touch()
    status, output = find_torch(tmp_path, CCP_FAST_TORCH_DIR=str(torch_dir))
    assert status == 0, output
    assert f"found 2.12.1 {torch_dir}/lib/libtorch_cpu.so cuda=ON" in output


def test_torch_is_found_on_the_interpreters_path_without_importing_it(tmp_path):
    torch_dir = fake_torch(tmp_path / "path" / "torch", "2.13.0+cpu")
    (torch_dir / "__init__.py").write_text("raise SystemExit('imported')")
    status, output = find_torch(tmp_path, PYTHONPATH=str(torch_dir.parent))
    assert status == 0, output
    assert f"found 2.13.0 {torch_dir}/lib/libtorch_cpu.so cuda=OFF" in output


def test_torch_is_found_in_site_packages_that_build_isolation_hides(tmp_path):
    interpreter = bare_interpreter(tmp_path / "env")
    (site_packages,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    torch_dir = fake_torch(site_packages / "torch", "2.14.0.dev20260101")
    isolation = tmp_path / "isolation" / "sitecustomize.py"  # as pip does it
    isolation.parent.mkdir()
    isolation.write_text(f"import sys; sys.path[:] = [p for p in sys.path if p != {str(site_packages)!r}]")
    status, output = find_torch(tmp_path, interpreter=interpreter, PYTHONPATH=str(isolation.parent))
    assert status == 0, output
    assert f"found 2.14.0 {torch_dir}/lib/libtorch_cpu.so" in output


def test_no_torch_is_one_clear_sentence(tmp_path):
    interpreter = bare_interpreter(tmp_path / "env")
    status, output = find_torch(tmp_path, interpreter=interpreter, PYTHONPATH="")
    assert status != 0
    assert (
        f"ccp_fast is compiled against torch, and {interpreter} has none: install torch >= 2.11 first"
        in output
    )


def test_a_wrong_torch_folder_is_one_clear_sentence(tmp_path):
    status, output = find_torch(tmp_path, CCP_FAST_TORCH_DIR=str(tmp_path / "nowhere"))
    assert status != 0
    assert (
        f"CCP_FAST_TORCH_DIR: expected the folder of an installed torch (it has a version.py), got {tmp_path}"
        in output
    )


@pytest.mark.parametrize("version", ["2.9.1", "2.10.0+cpu", "1.13"])
def test_a_torch_too_old_is_one_clear_sentence(tmp_path, version):
    torch_dir = fake_torch(tmp_path / "torch", version)
    status, output = find_torch(tmp_path, CCP_FAST_TORCH_DIR=str(torch_dir))
    assert status != 0
    assert (
        f"ccp_fast needs torch >= 2.11, found {version.partition('+')[0]} in {torch_dir}: upgrade torch"
        in output
    )


def test_a_torch_without_headers_is_one_clear_sentence(tmp_path):
    torch_dir = fake_torch(tmp_path / "torch", "2.13.0")
    shutil.rmtree(torch_dir / "include")
    status, output = find_torch(tmp_path, CCP_FAST_TORCH_DIR=str(torch_dir))
    assert status != 0
    assert f"the torch in {torch_dir} has no C++ headers or no libtorch_cpu: reinstall torch" in output


def decide_cuda(tmp_path: Path, choice: str, **environment: str) -> tuple[int, str]:
    return cmake(
        tmp_path, f"-DCCP_FAST_CUDA={choice}", "-P", f"{ROOT}/cmake/CudaDecision.cmake", **environment
    )


def test_cuda_kernels_are_never_promised(tmp_path):
    assert decide_cuda(tmp_path, "AUTO") == (
        0,
        "-- CUDA kernels: not built, this release of ccp_fast has no CUDA kernels yet",
    )
    status, output = decide_cuda(tmp_path, "OFF")
    assert status == 0
    assert "it was built with CCP_FAST_CUDA=OFF" in output


def test_cuda_on_without_nvcc_is_one_clear_sentence(tmp_path):
    status, output = decide_cuda(tmp_path, "ON", PATH=path_without_nvcc(tmp_path))
    assert status != 0
    assert (
        "CCP_FAST_CUDA=ON needs nvcc, and it is neither on PATH nor in CUDA_HOME: install the CUDA" in output
    )


def test_cuda_on_is_not_silently_ignored(tmp_path):
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.touch(mode=0o755)
    status, output = decide_cuda(
        tmp_path, "ON", PATH=path_without_nvcc(tmp_path), CUDA_HOME=f"{tmp_path}/toolkit"
    )
    assert status != 0
    assert "CCP_FAST_CUDA=ON cannot be met: this release of ccp_fast has no CUDA kernels yet" in output


def test_cuda_choice_is_checked(tmp_path):
    status, output = decide_cuda(tmp_path, "yes")
    assert status != 0
    assert "CCP_FAST_CUDA: expected AUTO, ON or OFF, got yes" in output


# Distributions --------------------------------------------------------------------------------------------


def path_without_nvcc(tmp_path: Path) -> str:
    """PATH with every folder that has an nvcc replaced by one of links to all but that."""
    entries = []
    for index, entry in enumerate(os.environ["PATH"].split(os.pathsep)):
        folder = Path(entry)
        if (folder / "nvcc").exists():
            folder = tmp_path / f"path{index}"
            folder.mkdir()
            for program in Path(entry).iterdir():
                if not program.name.startswith("nv"):
                    (folder / program.name).symlink_to(program)
        entries.append(str(folder))
    return os.pathsep.join(entries)


def build(hook: str, folder: Path, settings: dict[str, str], **environment: str) -> Path:
    """What pip asks of the build back end, without its isolation (which needs the network)."""
    pytest.importorskip("scikit_build_core", reason="needs scikit-build-core: pip install 'ccp-fast[test]'")
    program = f"import json, sys, scikit_build_core.build as b; print(b.{hook}(*json.loads(sys.argv[1])))"
    inherited = {key: value for key, value in os.environ.items() if key not in NO_TOOLKIT}
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps([str(folder), settings])],
        env={**inherited, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.splitlines()[-1]


def test_source_distribution_is_whole_and_clean(tmp_path):
    with tarfile.open(build("build_sdist", tmp_path, {})) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.*")}
    assert sources <= names
    assert {"CMakeLists.txt", "LICENSE", "README.md", "ccp_fast_info.py", "pyproject.toml"} <= names
    assert {"cmake/FindTorchHeaders.cmake", "ccp_fast/data/glyphs.bin", "python_tests/conftest.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".o", ".pyc")) or name.startswith("build/")]


@pytest.mark.slow
def test_wheel_without_nvcc(tmp_path):
    """Built unoptimised, nvcc hidden: it holds what it should, loads, and tells that CUDA is missing."""
    settings = {"cmake.build-type": "Debug", "build-dir": str(tmp_path / "build"), "install.strip": "true"}
    settings["cmake.define.CCP_FAST_CUDA"] = "AUTO"
    wheel = build("build_wheel", tmp_path, settings, PATH=path_without_nvcc(tmp_path))
    assert re.fullmatch(rf"ccp_fast-{re.escape(ccp_fast.__version__)}-py3-none-\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")

    wanted = {str(path.relative_to(ROOT)) for path in tracked(ROOT / "ccp_fast")}
    assert {
        "ccp_fast/py.typed",
        "ccp_fast/data/glyphs.bin",
        "ccp_fast/data/glyphs_licenses/README.md",
    } <= wanted
    assert any(name.endswith(".j2") for name in wanted)
    assert wanted | {"ccp_fast/_ops.so", "ccp_fast_info.py"} <= names
    assert not [name for name in names if name.startswith(("python_tests", "csrc", "benchmarks"))]
    assert [name for name in names if name.endswith("licenses/LICENSE")]

    facts = json.loads(python("-c", LOAD_WHEEL.format(site=str(tmp_path / "site")), cwd=tmp_path))
    assert Path(facts["library"]).parent == tmp_path / "site" / "ccp_fast"
    assert facts["cuda_built"] is False
    assert facts["missing"]["CUDA kernels"] == "this release of ccp_fast has no CUDA kernels yet"
    assert facts["torch_headers"] == torch.__version__.partition("+")[0]
    assert "operators of this version" not in facts["missing"]


# An editable installation's finder comes before sys.path.
LOAD_WHEEL = """
import json, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, {site!r})
import torch, ccp_fast
x = torch.randn(8, 5).requires_grad_()
ccp_fast.functional.contrastive(x, torch.randn(3, 2, 5), torch.arange(8) % 3).backward()
assert x.grad.isfinite().all()
print(json.dumps(ccp_fast.info()))
"""


def tracked(folder: Path) -> list[Path]:
    """Files that belong to the package, and not to a build or a cache."""
    return [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".pyc", ".so")]
