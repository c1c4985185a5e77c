"""The library with CUDA kernels, built here for two architectures: nothing spills, and it loads into a CPU torch.

Needs nvcc, and no GPU: no kernel runs. test_emulated_*.py run the same kernel sources on the CPU. Where there is no
nvcc these tests are skipped, or fail if CCP_FAST_REQUIRE_NVCC=1 says that it was to be there, as .ci/run does.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ccp_fast

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "cuda"  # kept: another run compiles what has changed
ARCHITECTURES = ("80", "90a")

TOOLKIT = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
NVCC = shutil.which("nvcc", path=os.pathsep.join([os.environ["PATH"], *(f"{home}/bin" for home in TOOLKIT)]))
REQUIRED = os.environ.get("CCP_FAST_REQUIRE_NVCC", "0") == "1"
WHERE = "on PATH or in CUDA_HOME: install the CUDA toolkit"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(NVCC is None and not REQUIRED, reason=f"needs nvcc, {WHERE}"),
]


def run(command: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        command,
        env={**os.environ, "PATH": path, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def output(command: list[str], cwd: Path, **environment: str) -> str:
    done = run(command, cwd, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def library() -> Path:
    """Warnings are errors, ptxas's about spilled registers and local memory too; what it says is kept by source."""
    if NVCC is None:
        pytest.fail(
            f"CCP_FAST_REQUIRE_NVCC=1: expected nvcc, {WHERE}, or set it to 0 to leave these tests out"
        )
    launcher = [sys.executable, str(ROOT / "python_tests" / "log_compiler.py")]
    settings = {
        "CCP_FAST_CUDA": "ON",
        "CMAKE_CUDA_ARCHITECTURES": ";".join(f"{name}-real" for name in ARCHITECTURES),
        "CMAKE_COMPILE_WARNING_AS_ERROR": "ON",
        "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
        "CMAKE_CUDA_FLAGS": "-Xptxas=-v",
        "CMAKE_CUDA_COMPILER_LAUNCHER": ";".join(
            [*launcher, *filter(None, [os.environ.get("CMAKE_CUDA_COMPILER_LAUNCHER")])]
        ),
        "CMAKE_BUILD_TYPE": "Debug",  # of host code: the CPU kernels compile in seconds
        "Python_EXECUTABLE": sys.executable,
    }
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    output(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(BUILD), *defines], ROOT, CUDACXX=str(NVCC))
    output(["cmake", "--build", str(BUILD)], ROOT)
    return BUILD / "_ops.so"


def compiled(pattern: str) -> dict[str, list[str]]:
    """The sources whose path matches, and the command that compiled each; no files are written beside the object."""
    entries = json.loads((BUILD / "compile_commands.json").read_text())
    found = {entry["file"]: entry["command"] for entry in entries if re.search(pattern, entry["file"])}
    return {
        file: shlex.split(re.sub(r" -MD -MT \S+ -MF \S+", "", command)) for file, command in found.items()
    }


def said_by_ptxas(command: list[str]) -> str:
    """About the kernels of one source, when that was compiled for the library."""
    return (BUILD / (command[command.index("-o") + 1] + ".log")).read_text()


def compile_like(pattern: str, source: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Compiles a source of one's own as that one file was, into an object beside it."""
    ((_, command),) = compiled(pattern).items()
    command[command.index("-c") + 1] = source
    command[command.index("-o") + 1] = str(Path(source).with_suffix(".o"))
    return run([*command, *options], folder)


# The kernels ------------------------------------------------------------------------------------------------------

SPILLS = """
__global__ void __launch_bounds__(1024) spills(double* x, int n) {
  double held[60];
  for (int i = 0; i < 60; ++i) held[i] = x[i * n];
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < 60; ++i) held[i] = held[i] * held[(i + 7) % 60] + x[j];
  for (int i = 0; i < 60; ++i) x[i * n] = held[i];
}
"""


def test_every_kernel_is_compiled_for_both_architectures(library: Path) -> None:
    kernels = compiled(r"^(?!.*/losses/hopper/).*\.cu$")
    assert {str(path) for path in (ROOT / "csrc" / "kernels" / "cuda").rglob("*.cu")} <= set(kernels)
    for command in kernels.values():
        for name in ARCHITECTURES:
            assert f"--generate-code=arch=compute_{name},code=[sm_{name}]" in command


def test_kernels_for_hopper_are_compiled_for_nothing_else(library: Path) -> None:
    """Their products run side by side with the rest, and no register is given up for more threads than there are."""
    kernels = compiled(r"/losses/hopper/.*\.cu$")
    assert len(kernels) == len(compiled(r"/losses/[a-z_0-9]+\.cu$")) > 10
    for command in kernels.values():
        assert re.findall(r"code=\[(\w+)\]", " ".join(command)) == ["sm_90a"]


PRODUCTS = """
#include "common/wgmma.h"
using namespace ccp;
__global__ void products(float* out, int n) {
  CCP_SHARED(bytes);
  WgmmaSums d = {};
  for (int i = 0; i < n; ++i) {
    wgmma_fence();
    wgmma<Dtype::kBFloat16>(d, matrix_at(bytes), matrix_at(bytes + 8192));
    wgmma_commit();
    %s
  }
  wgmma_wait<0>();
  keep_sums(d);
  for (int j = 0; j < 32; ++j) out[threadIdx.x * 32 + j] = d[0][j / 4].v[j %% 4];
}
"""


def test_ptxas_does_not_serialise_products(library: Path, tmp_path: Path) -> None:
    """It says so, and not as a warning, where sums are touched while products are under way."""
    pattern = r"/losses/hopper/multi_similarity\.cu$"
    for name, between, serialised in (("sound", "", False), ("touched", "d[0][0].v[0] += 1;", True)):
        (tmp_path / f"{name}.cu").write_text(PRODUCTS % between)
        done = compile_like(pattern, f"{name}.cu", tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("wgmma.mma_async instructions are serialized" in done.stdout + done.stderr) == serialised


# Of 416 threads, 13 warps, four meet on one scheduler, which has a quarter of a multiprocessor's 65,536 registers.
MOST_REGISTERS = 65536 // 4 // 4 // 32


def test_every_loss_for_hopper_multiplies_side_by_side_and_fits_the_registers(library: Path) -> None:
    sources = compiled(r"/losses/hopper/.*\.cu$")
    registry = (ROOT / "csrc" / "losses" / "registry.h").read_text()
    assert {Path(source).stem for source in sources} == set(
        re.findall(r"^  X\((\w+),", registry, re.MULTILINE)
    )
    for source, command in sources.items():
        said = said_by_ptxas(command)
        used = [int(count) for count in re.findall(r"Used (\d+) registers", said)]
        assert used, f"{source}: {said}"
        assert "serialized" not in said, said
        assert max(used) <= MOST_REGISTERS, said


def test_kernels_see_no_torch_header(library: Path) -> None:
    torch_headers = str(Path(torch.__file__).parent / "include")
    assert not [file for file, command in compiled(r"\.cu$").items() if torch_headers in " ".join(command)]
    assert all(torch_headers in command for command in compiled(r"/ops/cuda/").values())


def test_a_kernel_that_spills_would_not_have_been_built(library: Path, tmp_path: Path) -> None:
    (tmp_path / "spills.cu").write_text(SPILLS)
    done = compile_like(r"/projection_grad\.cu$", "spills.cu", tmp_path)
    assert done.returncode != 0
    assert "Registers are spilled to local memory in function" in done.stdout + done.stderr
    (tmp_path / "keeps.cu").write_text("__global__ void keeps(double* x) { *x = 1; }")
    done = compile_like(r"/projection_grad\.cu$", "keeps.cu", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


# The library ------------------------------------------------------------------------------------------------------

ASK = """
import json, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, {site!r})
import torch, ccp_fast
from torch._subclasses.fake_tensor import FakeTensorMode
assert ccp_fast.__file__.startswith({site!r})
ops = torch.ops.ccp_fast


def shapes(result):
    results = result if isinstance(result, tuple) else (result,)
    return [[str(x.device), str(x.dtype), list(x.shape)] for x in results]


def error(op, *arguments):
    # A CPU torch makes no CUDA tensors, so this goes to the CUDA kernel with what it has.
    try:
        op.default.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA), *arguments)
    except RuntimeError as failed:
        return str(failed)


{body}
"""

BODY = """
def calls(fake):
    # Of every operator, with the arguments that `fake` makes.
    anchors, proxies, labels = fake(6, 4), fake(3, 2, 4), fake(6, dtype=torch.int64)
    whole = ("contrastive_l2", [0.0, 0.5], "ball", "mean", False, False, False)
    shard = ("triplet", [0.2], "ball")
    rows, two, flags = fake(3, 6), fake(2, dtype=torch.float64), fake(6, dtype=torch.uint8)
    positives, counts = fake(6, 2), fake(6, 2, dtype=torch.int32)
    return {
        "similarity_loss": (anchors, proxies, labels, None, *whole),
        "similarity_loss_backward": (
            fake(), anchors, proxies, labels, None, rows, two, flags, *whole, True, True),
        "similarity_shard_states": (anchors, proxies, labels, positives, *shard, False, False),
        "similarity_finish": (fake(2, 4, 6), 12, "triplet", [0.2]),
        "similarity_shard_counts": (anchors, proxies, labels, positives, *shard, False),
        "similarity_shard_backward": (
            fake(), anchors, proxies, labels, positives, counts, rows, two, flags, *shard, False, False, True, True),
        "projection_grad_": ([fake(5)], [fake(5), fake(2, 3)], [fake(5), fake(2, 3)], 0.1),
        "nearest_references": (fake(9, 4), proxies, 5, "none", False, False),
        "farthest_points": (fake(9, 4), fake(3, dtype=torch.int64), None, None, 2, "none", False),
        "centre_spread": (proxies,),
        "centre_spread_backward": (fake(), proxies),
    }


with FakeTensorMode():
    on_a_gpu = lambda *shape, dtype=torch.float32: torch.empty(shape, dtype=dtype, device="cuda")
    fakes = {name: shapes(getattr(ops, name)(*call)) for name, call in calls(on_a_gpu).items()}
on_the_cpu = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype)
w = torch.ones(3)
print(json.dumps({
    "info": ccp_fast.info(),
    "fakes": fakes,
    "registered": [
        name for name in fakes if torch._C._dispatch_has_kernel_for_dispatch_key(f"ccp_fast::{name}", "CUDA")],
    "errors": {name: error(getattr(ops, name), *call) for name, call in calls(on_the_cpu).items()},
    "error": error(ops.projection_grad_, [w], [w], [w], 0.5),
    "on the CPU": ops.projection_grad_([torch.zeros(3)], [w], [torch.zeros(3)], 0.5).item(),
}))
"""


def ask(library: Path, folder: Path, body: str) -> dict:
    """What a fresh interpreter prints that imports the package with this library."""
    site = folder / "site"
    shutil.copytree(Path(ccp_fast.__file__).parent, site / "ccp_fast", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(library, site / "ccp_fast" / "_ops.so")
    return json.loads(output([sys.executable, "-c", ASK.format(site=str(site), body=body)], folder))


@pytest.fixture(scope="module")
def answers(library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return ask(library, tmp_path_factory.mktemp("library"), BODY)


def test_it_loads_and_tells_its_architectures(answers: dict) -> None:
    assert answers["info"]["cuda_built"] is True
    assert answers["info"]["cuda_architectures"] == list(ARCHITECTURES)
    assert "CUDA kernels" not in answers["info"]["missing"]
    assert "has not run on a GPU: off" in answers["info"]["hopper"]
    assert answers["on the CPU"] == 0.75


def operators() -> set[str]:
    """Of csrc/registration.cpp, but for the one that has no tensors."""
    text = (ROOT / "csrc" / "registration.cpp").read_text()
    return set(re.findall(r'm\.def\(\s*"(\w+)\(', text)) - {"build_info"}


def test_every_operator_is_registered(answers: dict) -> None:
    assert len(operators()) > 10
    assert set(answers["fakes"]) == operators()
    assert set(answers["registered"]) == operators()


def test_every_operator_has_a_kernel_of_its_own(answers: dict) -> None:
    """What stands in for a missing one is registered, too."""
    for name, error in answers["errors"].items():
        assert error, name
        assert "has no CUDA kernel" not in error, name


def test_fake_results_are_on_the_gpu(answers: dict) -> None:
    def on_a_gpu(*results: tuple[str, list[int]]) -> list:
        return [["cuda:0", f"torch.{dtype}", shape] for dtype, shape in results]

    gradients = on_a_gpu(("float32", [6, 4]), ("float32", [3, 2, 4]))
    fakes = answers["fakes"]
    assert fakes["projection_grad_"] == on_a_gpu(("float32", []))
    assert fakes["farthest_points"] == on_a_gpu(("int64", [2, 2]), ("float32", [2, 2]))
    assert fakes["nearest_references"] == on_a_gpu(("int64", [9, 5]), ("float32", [9, 5]))
    assert fakes["similarity_loss"][:1] == on_a_gpu(("float32", []))
    assert fakes["similarity_loss_backward"] == gradients
    assert fakes["similarity_shard_states"] == on_a_gpu(("float32", [4, 6]), ("uint8", [6]))
    assert fakes["similarity_finish"] == on_a_gpu(("float32", [3, 6]), ("float64", [6, 6]))
    assert fakes["similarity_shard_counts"] == on_a_gpu(("int32", [6, 2]))
    assert fakes["similarity_shard_backward"] == gradients
    assert fakes["centre_spread"] == on_a_gpu(("float32", []))
    assert fakes["centre_spread_backward"] == on_a_gpu(("float32", [3, 2, 4]))


def test_a_tensor_elsewhere_is_one_clear_sentence(answers: dict) -> None:
    assert answers["error"] == "params[0]: expected a CUDA tensor like the others, got a CPU tensor"


def test_the_runtime_stays_inside(library: Path) -> None:
    """No libcudart has to be there, and none that torch brings is taken for the one linked in."""
    needed = output(["readelf", "--dynamic", str(library)], BUILD)
    assert "libtorch_cpu" in needed
    assert not re.search(r"NEEDED.*(cuda|c10)", needed)
    exported = output(["nm", "--dynamic", "--defined-only", str(library)], BUILD)
    undefined = output(["nm", "--dynamic", "--undefined-only", str(library)], BUILD)
    assert not re.search(r" (__)?cuda[A-Z]", exported + undefined)


# What operators share -----------------------------------------------------------------------------------------------

PROBE = """
#include <cuda_runtime.h>

// The runtime's last error, which the real one keeps only where there is a driver.
static cudaError_t last_error = cudaSuccess;
static cudaError_t forget_last_error() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
#define cudaGetLastError forget_last_error
#include "ops/cuda/stream.h"

#define PUBLIC extern "C" __attribute__((visibility("default")))

const char* ccp::cuda_architectures() { return "80,90a"; }

// One that fails before its launch, as it may when it asks for shared memory; and one whose launch succeeds.
static cudaError_t launcher(cudaError_t error, int) { return last_error = error; }
static cudaError_t next_launcher() { return cudaGetLastError(); }

template <class F>
static const char* message(const F& f) {
  static std::string text;
  try {
    text = f();
  } catch (const std::exception& error) {
    text = error.what();
  }
  return text.c_str();
}

PUBLIC const char* stream() {
  return message([] {
    const ccp::Tensor tensor = torch::stable::empty({1});
    return std::to_string(reinterpret_cast<uintptr_t>(ccp::current_stream(tensor)));
  });
}

PUBLIC const char* check(int error) {
  return message([error] {
    CCP_CUDA_CHECK(launcher(cudaError_t(error), 2));
    return std::string("no error");
  });
}

PUBLIC const char* check_next() {
  return message([] {
    CCP_CUDA_CHECK(next_launcher());
    return std::string("no error");
  });
}
"""

TORCH_CUDA = """
int aoti_torch_get_current_cuda_stream(int device_index, void** stream) {
  *stream = (char*)1000 + device_index;
  return 0;
}
"""

CALL = """
import ctypes, json, sys, torch
for path in sys.argv[2:]:
    ctypes.CDLL(path)  # privately, as Python loads what torch._C needs
probe = ctypes.CDLL(sys.argv[1])
probe.stream.restype = probe.check.restype = probe.check_next.restype = ctypes.c_char_p
checks = [probe.check(error) for error in (0, 2, 209)]
print(json.dumps([said.decode() for said in (probe.stream(), *checks, probe.check_next())]))
"""


def test_torchs_stream_and_errors_in_words(library: Path, tmp_path: Path) -> None:
    (tmp_path / "probe.cpp").write_text(PROBE)
    (tmp_path / "torch_cuda.c").write_text(TORCH_CUDA)
    done = compile_like(r"/ops/cuda/projection_grad\.cpp$", "probe.cpp", tmp_path)
    assert done.returncode == 0, done.stderr
    folder = Path(torch.__file__).parent / "lib"
    link = [f"-L{folder}", "-ltorch_cpu", "-Xlinker", f"-rpath={folder}"]
    output([str(NVCC), "-shared", "-o", "probe.so", "probe.o", *link], tmp_path)
    fake = ["-shared", "-fPIC", "-o", "libtorch_cuda.so", "-Wl,-soname,libtorch_cuda.so", "torch_cuda.c"]
    output(["cc", *fake], tmp_path)

    call = [sys.executable, "-c", CALL, str(tmp_path / "probe.so")]
    stream, none, memory, image, none_after = json.loads(
        output([*call, str(tmp_path / "libtorch_cuda.so")], tmp_path)
    )
    assert stream == "999"  # of device -1, where a CPU tensor is
    # The second time after an error: launchers return the runtime's last, which has been told already.
    assert none == none_after == "no error"
    assert memory == "launcher: CUDA error 2, out of memory"
    assert image == (
        "launcher: CUDA error 209, no kernel image is available for execution on the device: ccp_fast was built for "
        "the architectures 80,90a, install it again on this machine or set CCP_FAST_CUDA_ARCHS"
    )
    if torch.version.cuda is None:
        stream = json.loads(output(call, tmp_path))[0]
        assert stream.startswith("expected a CUDA build of torch, got one without")


# Without CUDA kernels ---------------------------------------------------------------------------------------------


def test_a_call_with_cuda_tensors_says_why_there_is_no_kernel(tmp_path: Path) -> None:
    """Of the library that is tested everywhere else."""
    facts = ccp_fast.info()
    if facts["cuda_built"]:
        pytest.skip("asks the installed library why it has no CUDA kernels: it has them")
    body = "print(json.dumps({'error': error(ops.projection_grad_, *[[torch.ones(3)]] * 3, 0.5)}))"
    error = ask(Path(str(facts["library"])), tmp_path, body)["error"]
    missing = facts["missing"]["CUDA kernels"]
    assert error == f"expected CPU tensors, got CUDA tensors: this ccp_fast has no CUDA kernels, {missing}"
