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


NO_TOOLKIT = ("CUDACXX", "CUDAARCHS", "CUDA_HOME", "CUDA_PATH", "CCP_FAST_CUDA_ARCHS", "CCP_FAST_TORCH_DIR")


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


def decide_cuda(tmp_path: Path, choice: str, *arguments: str, torch_cuda: bool = True, **environment: str):
    """Runs the decision by itself, with no nvcc and no nvidia-smi but those that the environment leads to."""
    environment.setdefault("PATH", path_without_nvidia(tmp_path))
    found = f"-DTorchHeaders_HAS_CUDA={'ON' if torch_cuda else 'OFF'}"
    settings = [f"-DCCP_FAST_CUDA={choice}", found, "-DTorchHeaders_VERSION=2.13.0", *arguments]
    return cmake(tmp_path, *settings, "-P", f"{ROOT}/cmake/CudaDecision.cmake", **environment)


def fake_nvcc(
    tmp_path: Path, release: str = "13.0", architectures: str = "75 80 86 87 89 90 100 103 120"
) -> str:
    """A CUDA_HOME; its compiler tells what it is and compiles nothing."""
    listed = "".join(f"echo compute_{name}; " for name in architectures.split())
    script = f"""#!/bin/sh
        case "$1" in
          --version) echo "Cuda compilation tools, release {release}, V{release}.88";;
          --list-gpu-arch) {listed};;
          *) exit 1;;
        esac
    """
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(script)
    nvcc.chmod(0o755)
    return str(tmp_path / "toolkit")


def fake_gpus(tmp_path: Path, *capabilities: str, status: int = 0) -> str:
    """A PATH with an nvidia-smi that prints these."""
    program = tmp_path / "driver" / "nvidia-smi"
    program.parent.mkdir()
    printed = "".join(f"echo {capability}; " for capability in capabilities)
    program.write_text(f"#!/bin/sh\n{printed}exit {status}\n")
    program.chmod(0o755)
    return os.pathsep.join([str(program.parent), path_without_nvidia(tmp_path)])


def test_cuda_is_not_looked_for_where_torch_cannot_use_it(tmp_path):
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    nvcc.chmod(0o755)
    for choice, reason in (
        (
            "AUTO",
            "torch 2.13.0 was a CPU build when ccp_fast was installed, so install a CUDA build of torch",
        ),
        ("OFF", "it was built with CCP_FAST_CUDA=OFF"),
    ):
        status, output = decide_cuda(tmp_path, choice, torch_cuda=choice == "OFF", CUDA_HOME=str(tmp_path))
        assert status == 0
        assert output.startswith(f"-- CUDA kernels: not built, {reason}")
    assert not (tmp_path / "called").exists()


NVCC_PROBLEMS = {
    "nvcc is neither on PATH nor in CUDA_HOME, so install the CUDA toolkit first": {},
    "the kernels need nvcc 12.0 or later, and {nvcc} is 11.8": {"release": "11.8"},
    "{nvcc} does not run": {"release": "?"},
}


@pytest.mark.parametrize("choice", ["AUTO", "ON"])
@pytest.mark.parametrize("problem", NVCC_PROBLEMS)
def test_an_nvcc_that_will_not_do_is_one_clear_sentence(tmp_path, problem, choice):
    toolkit = NVCC_PROBLEMS[problem]
    environment = {"CUDA_HOME": fake_nvcc(tmp_path, **toolkit)} if toolkit else {}
    status, output = decide_cuda(tmp_path, choice, **environment)
    problem = problem.format(nvcc=tmp_path / "toolkit" / "bin" / "nvcc")
    if choice == "AUTO":
        assert (status, output) == (0, f"-- CUDA kernels: not built, {problem}")
    else:
        assert status != 0
        assert f"CCP_FAST_CUDA=ON cannot be met: {problem}" in output


RELEASE = "80-real;86-real;89-real;90a-real;100-real;120"


@pytest.mark.parametrize(
    ("gpus", "known", "architectures"),
    [
        (None, "75 80 86 89 90 100 120", RELEASE),
        (["9.0"], "80 90 100 120", "90a-real"),
        (["8.6", "12.0", "8.6"], "80 86 89 90 100 120", "86-real;120-real"),
        (["7.5"], "75 80 86 89 90 100 120", RELEASE),
        (
            ["12.1"],
            "80 86 89 90",
            "80-real;86-real;89-real;90a",
        ),  # a GPU newer than this nvcc: PTX of the last
    ],
)
def test_architectures_are_those_of_the_gpus_here_or_of_the_release(tmp_path, gpus, known, architectures):
    environment = {"CUDA_HOME": fake_nvcc(tmp_path, architectures=known)}
    if gpus:
        environment["PATH"] = fake_gpus(tmp_path, *gpus)
    for choice in ("AUTO", "ON"):
        status, output = decide_cuda(tmp_path, choice, **environment)
        assert status == 0
        assert output == f"-- CUDA kernels: for {architectures}, with {tmp_path}/toolkit/bin/nvcc"


def test_a_driver_that_fails_is_no_gpu(tmp_path):
    path = fake_gpus(tmp_path, "9.0", status=9)
    _, output = decide_cuda(tmp_path, "AUTO", CUDA_HOME=fake_nvcc(tmp_path), PATH=path)
    assert f"for {RELEASE}, with" in output


def test_architectures_can_be_chosen(tmp_path):
    environment = {"CUDA_HOME": fake_nvcc(tmp_path), "PATH": fake_gpus(tmp_path, "9.0")}
    for chosen in ("80;90a-real", "80, 90a-real", "80 90a-real"):
        _, output = decide_cuda(tmp_path, "AUTO", CCP_FAST_CUDA_ARCHS=chosen, **environment)
        assert "for 80;90a-real, with" in output
    argument = "-DCMAKE_CUDA_ARCHITECTURES=89"
    _, output = decide_cuda(tmp_path, "ON", argument, CCP_FAST_CUDA_ARCHS="80", **environment)
    assert "for 89, with" in output
    for wrong in ({"CCP_FAST_CUDA_ARCHS": "sm_90"}, {"CCP_FAST_CUDA_ARCHS": "native"}):
        status, output = decide_cuda(tmp_path, "ON", **environment, **wrong)
        assert status != 0
        assert f"expected architectures such as 80;90a, got {wrong['CCP_FAST_CUDA_ARCHS']}" in output


def test_an_nvcc_that_compiles_nothing_stops_nobody(tmp_path):
    """AUTO goes on without CUDA, and the library will tell why."""
    (tmp_path / "CMakeLists.txt").write_text(f"""
        cmake_minimum_required(VERSION 3.22)
        project(probe LANGUAGES CXX)
        set(TorchHeaders_HAS_CUDA ON)
        include("{ROOT}/cmake/CudaDecision.cmake")
        include("{ROOT}/cmake/CudaKernels.cmake")
        message(STATUS "missing: ${{CCP_CUDA_MISSING}}")
    """)
    environment = {"CUDA_HOME": fake_nvcc(tmp_path), "PATH": path_without_nvidia(tmp_path)}
    status, output = cmake(tmp_path, "-S.", "-Bbuild", "-DCCP_FAST_CUDA=AUTO", **environment)
    assert status == 0, output
    nvcc = f"{tmp_path}/toolkit/bin/nvcc"
    assert f"missing: {nvcc} does not compile with this C++ compiler, and CCP_FAST_CUDA=ON shows" in output
    status, output = cmake(tmp_path, "-S.", "-Bbuild", "-DCCP_FAST_CUDA=ON", **environment)
    assert status != 0
    assert nvcc in output


def test_cuda_choice_is_checked(tmp_path):
    status, output = decide_cuda(tmp_path, "yes")
    assert status != 0
    assert "CCP_FAST_CUDA: expected AUTO, ON or OFF, got yes" in output


# Distributions --------------------------------------------------------------------------------------------


def path_without_nvidia(tmp_path: Path) -> str:
    """PATH with every folder that has an nvcc or a driver replaced by one of links to all but those."""
    entries = []
    for index, entry in enumerate(os.environ["PATH"].split(os.pathsep)):
        folder = Path(entry)
        if any((folder / name).exists() for name in ("nvcc", "nvidia-smi")):
            folder = tmp_path / f"path{index}"
            folder.mkdir(exist_ok=True)
            for program in Path(entry).iterdir():
                link = folder / program.name
                if not program.name.startswith("nv") and not link.is_symlink():
                    link.symlink_to(program)
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
    wheel = build("build_wheel", tmp_path, settings, PATH=path_without_nvidia(tmp_path))
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
    why = "was a CPU build" if torch.version.cuda is None else "nvcc is neither on PATH nor in CUDA_HOME"
    assert why in facts["missing"]["CUDA kernels"]
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
