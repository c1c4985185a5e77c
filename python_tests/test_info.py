"""`ccp_fast.info()` and `ccp-info`, on a sound installation and on broken ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ccp_fast
from ccp_fast import _info, _library

PACKAGE = Path(ccp_fast.__file__).parent
BUILT = dict(line.split("=", 1) for line in torch.ops.ccp_fast.build_info().splitlines())


def test_info_says_what_is_there():
    facts = ccp_fast.info()
    assert set(facts) == set(_info.Info.__annotations__)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["version"] == ccp_fast.__version__
    assert facts["torch"] == torch.__version__
    assert facts["torch_cuda"] == torch.version.cuda
    assert facts["numpy"] == metadata.version("numpy")
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu_capability"] in facts["cpu_capabilities_built"]
    assert facts["cpu"]
    assert facts["compiler"] == BUILT["compiler"]
    assert facts["library"] is not None
    assert Path(facts["library"]).is_file()


def test_everything_missing_has_a_reason():
    facts = ccp_fast.info()
    assert "operators" not in facts["missing"]
    assert ("CUDA kernels" in facts["missing"]) == (not facts["cuda_built"])
    assert ("CUDA devices" in facts["missing"]) == (not facts["cuda_devices"])
    assert ("faiss" in facts["missing"]) == (not facts["faiss"])
    assert facts["faiss"] == (util.find_spec("faiss") is not None)
    assert all(len(reason.split()) > 3 for reason in facts["missing"].values())


def test_every_reason_is_printed_on_one_line():
    facts = ccp_fast.info()
    lines = _info.format_info(facts).splitlines()
    assert lines[0].split() == ["ccp_fast", ccp_fast.__version__]
    for name, reason in facts["missing"].items():
        assert f"  {name}: {reason}" in lines
    whole = {**facts, "missing": {}, "cuda_devices": ["NVIDIA H200 (sm_90, 140 GiB)"]}
    assert "Missing" not in _info.format_info(whole)
    assert "CUDA devices  NVIDIA H200 (sm_90, 140 GiB)" in _info.format_info(whole)


def test_it_says_whether_cuda_kernels_have_ever_run(monkeypatch):
    results = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
    assert bool(list(results.glob("gpu_*.json"))) == _info.CUDA_KERNELS_HAVE_RUN
    for run, said in (
        (False, "80, 90a; none has run on a GPU yet, results and speed there are unknown"),
        (True, "80, 90a"),
    ):
        monkeypatch.setattr(_info, "CUDA_KERNELS_HAVE_RUN", run)
        text = _info.format_info({**ccp_fast.info(), "cuda_architectures": ["80", "90a"]})
        assert f"CUDA kernels  {said}" in text.splitlines()


def test_the_path_for_hopper_says_that_it_has_not_run(monkeypatch):
    assert (ccp_fast.info()["hopper"] is not None) == ("90a" in ccp_fast.info()["cuda_architectures"])
    monkeypatch.setattr(_info, "_operators", lambda missing: ("_ops.so", {**BUILT, "hopper_built": "yes"}))
    for value, state in (("", "off, CCP_FAST_HOPPER=1 turns it on"), ("1", "on, CCP_FAST_HOPPER=1")):
        monkeypatch.setenv("CCP_FAST_HOPPER", value)
        facts = ccp_fast.info()
        assert facts["hopper"] == f"a forward pass of its own, built, has not run on a GPU: {state}"
        assert f"Hopper        {facts['hopper']}" in _info.format_info(facts).splitlines()


def test_devices_of_a_cuda_torch(monkeypatch):
    gpu = SimpleNamespace(name="NVIDIA H200", major=9, minor=0, total_memory=140 * 2**30)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    assert ccp_fast.info()["cuda_devices"] == ["NVIDIA H200 (sm_90, 140 GiB)"]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    facts = ccp_fast.info()
    assert facts["torch_cuda"] == "13.0"
    assert "finds no GPU" in facts["missing"]["CUDA devices"]


@pytest.mark.parametrize(
    ("built", "capability", "runs"),
    [
        ("80,90a", (9, 0), True),
        ("80,90a", (8, 6), True),
        ("90a", (10, 0), False),
        ("90a", (8, 0), False),
        ("86", (8, 0), False),
        ("80", (12, 0), False),
        ("80,120+PTX", (12, 1), True),
        ("80,120+PTX", (13, 0), True),
        ("100,120+PTX", (9, 0), False),
    ],
)
def test_kernels_that_do_not_run_on_this_gpu(monkeypatch, built, capability, runs):
    major, minor = capability
    gpu = SimpleNamespace(name="GPU", major=major, minor=minor, total_memory=2**30)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    text = "\n".join(f"{key}={value}" for key, value in (BUILT | {"cuda_architectures": built}).items())
    monkeypatch.setattr(torch.ops.ccp_fast, "build_info", lambda: text)
    missing = ccp_fast.info()["missing"]
    assert ("CUDA kernels for GPU" in missing) == (not runs)
    if not runs:
        wanted = f"it is an sm_{major}{minor}, and they were built for {', '.join(built.split(','))}: install"
        assert missing["CUDA kernels for GPU"].startswith(wanted)


@pytest.mark.parametrize(
    ("built", "missing", "reason"),
    [
        ({"version": "0.0.9"}, "operators of this version", "those of ccp_fast 0.0.9"),
        (
            {"cuda_architectures": "", "cuda_missing": "nvcc was not found"},
            "CUDA kernels",
            "nvcc was not found",
        ),
        ({"cpu_capability": "avx2"}, "AVX-512", "this processor does not have it"),
        (
            {"cpu_capability": "portable", "cpu_capabilities_built": "portable"},
            "vector instructions",
            "portable",
        ),
    ],
)
def test_what_the_library_tells_becomes_a_reason(monkeypatch, built, missing, reason):
    said = {"version": ccp_fast.__version__, "cpu_capability": "avx512", "cuda_architectures": "90a"}
    said |= {"cpu_capabilities_built": "portable,avx2,avx512"} | built
    text = "\n".join(f"{key}={value}" for key, value in said.items())
    monkeypatch.setattr(torch.ops.ccp_fast, "build_info", lambda: text)
    monkeypatch.delenv("CCP_FAST_CPU_CAPABILITY", raising=False)
    facts = ccp_fast.info()
    assert reason in facts["missing"][missing]
    assert set(facts["missing"]) - {"CUDA devices", "faiss"} == {missing}


def test_a_lesser_capability_asked_for(tmp_path):
    if BUILT["cpu_capabilities_built"] == "portable":
        pytest.skip("asks for lesser kernels than those that are built: here the portable ones are all")
    program = "import ccp_fast, json; print(json.dumps(ccp_fast.info()))"
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "CCP_FAST_CPU_CAPABILITY": "portable", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    facts = json.loads(done.stdout)
    assert facts["cpu_capability"] == "portable"
    best = BUILT["cpu_capabilities_built"].split(",")[-1]
    assert facts["missing"][_info._INSTRUCTIONS[best]] == "CCP_FAST_CPU_CAPABILITY=portable asks for less"


def test_an_unknown_capability_is_an_error(monkeypatch):
    monkeypatch.setenv("CCP_FAST_CPU_CAPABILITY", "avx1024")
    with pytest.raises(ImportError, match="expected portable, avx2 or avx512, got 'avx1024'"):
        _library.load()


# Broken installations: a copy of what runs up to the error, imported in a process of its own.

# The copy must win over an editable installation, whose finder comes before sys.path.
IMPORT_COPY = """
import sys, traceback
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, {copy!r})
{before}
try:
    import ccp_fast
except ImportError as error:
    print(error)
    print("----")
import ccp_fast_info
sys.exit(ccp_fast_info.main())
"""


def import_copy(copy: Path, before: str = "") -> tuple[str, str]:
    """The message of `import ccp_fast`, and what `ccp-info` prints nevertheless."""
    (copy / "ccp_fast").mkdir(exist_ok=True)
    for name in ("__init__.py", "_info.py", "_library.py"):
        shutil.copy(PACKAGE / name, copy / "ccp_fast" / name)
    module = util.find_spec("ccp_fast_info")
    assert module is not None
    assert module.origin is not None
    shutil.copy(module.origin, copy)
    program = IMPORT_COPY.format(copy=str(copy), before=before)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=copy, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    message, _, printed = done.stdout.partition("----\n")
    assert f"  operators: {message.splitlines()[0]}" in printed
    assert "operators     missing" in printed
    return message, printed


def test_operators_that_were_never_built(tmp_path):
    message, printed = import_copy(tmp_path)
    assert "compiled operators (_ops.so) are missing" in message
    assert "pip install" in message
    assert f"torch         {torch.__version__}" in printed


def test_operators_that_do_not_load(tmp_path):
    (tmp_path / "ccp_fast").mkdir()
    (tmp_path / "ccp_fast" / "_ops.so").write_bytes(b"not a library")
    message, _ = import_copy(tmp_path)
    assert f"do not load into torch {torch.__version__}" in message
    assert "_ops.so" in message
    assert "pip install --force-reinstall" in message


def test_a_torch_that_is_too_old(tmp_path):
    message, printed = import_copy(tmp_path, before="import torch; torch.__version__ = '2.9.1'")
    assert message == "ccp_fast needs torch >= 2.11, found 2.9.1: pip install --upgrade torch\n"
    assert "torch         2.9.1" in printed


def test_no_torch(tmp_path):
    message, printed = import_copy(tmp_path, before="sys.modules['torch'] = None")
    assert "torch" in message
    assert "torch         missing" in printed
    assert "pip install torch" in printed
