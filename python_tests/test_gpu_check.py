"""The order of things in `benchmarks/gpu_check.sh`, with stand-ins for the programs that it calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs bash and GNU coreutils")

# An interpreter that notes how it was called and does what the environment says. NAME_STATUS: how a step ends.
PYTHON = r"""#!/usr/bin/env bash
printf '%s\n' "${*//$'\n'/ }" >>"$CALLS"
case "$*" in
  *is_available*) [[ ${GPU:-yes} = yes ]] || { echo 'AssertionError: torch 2 finds none' >&2; exit 1; } ;;
  '-m venv'*) mkdir -p "$4/bin" "$4/packages" && cp "$0" "$4/bin/python" ;;
  '-c import sysconfig'*) echo "${0%/bin/*}/packages" ;;
  '-c import site'*) echo /host/packages ;;
  '-m pip'*) echo "CCP_FAST_CUDA=$CCP_FAST_CUDA"; exit "${PIP_STATUS:-0}" ;;
  *'gpu_preflight.py --installed') [[ -z ${IMPORTS:-} ]] || { echo "$IMPORTS"; exit 1; } ;;
  *gpu_preflight.py) [[ -z ${PROGRAMS:-} ]] || { echo "$PROGRAMS"; exit 1; } ;;
  *--junitxml=*)
    all=$*
    file=${all##*--junitxml=}
    printf '<testsuites><testsuite tests="5" skipped="%d"/></testsuites>' "${SKIPPED:-1}" >"${file%% *}"
    echo 'SKIPPED [1] python_tests/test_training.py: needs pydantic, which is not installed'
    echo 'SKIPPED [1] python_tests/test_gpu.py:9: needs a GPU'
    echo '4 passed, 1 skipped'
    [[ $* != *gpu_tests.xml* ]] || exit "${GPU_TESTS_STATUS:-0}" ;;
  *gpu_small_cases.py*) echo '9 of 9 cases (100 %) on cuda, 5 of 5 losses and operators, 0 problems' ;;
  *'ccp_fast.bench.main gpu'*) sleep "${BENCH_SECONDS:-0}"; echo 'ceilings: 4000 GB/s'; echo ' BELOW' ;;
  *mem_get_info*) echo 3 ;;
  '-c import xdist'*) exit "${XDIST_STATUS:-0}" ;;
  '-c import importlib.util'*) [[ ${*: -1} != inf_cl ]] ;;
  *ElementTree*) exec "$REAL_PYTHON" "$@" ;;
esac
"""
SANITIZER = r"""#!/usr/bin/env bash
if [[ $1 = --help ]]; then echo '  --kernel-name arg'; exit; fi
printf 'sanitizer %s\n' "$*" >>"$CALLS"
[[ $* = *"${FAILING_TOOL:-none}"* ]] && exit 9
"${@: -6}"
echo '========= ERROR SUMMARY: 0 errors'
"""
NCU = r"""#!/bin/sh
printf 'ncu %s\n' "$*" >>"$CALLS"
[ -z "${COUNTERS:-}" ] || { echo "$COUNTERS"; exit 1; }
echo '"ID","Kernel Name"'
"""


class Machine:
    def __init__(self, folder: Path) -> None:
        self.out, self.calls = folder / "out", folder / "calls"
        programs = folder / "programs"
        programs.mkdir()
        self.calls.touch()
        for name, text in (
            ("python3", PYTHON),
            ("compute-sanitizer", SANITIZER),
            ("nvidia-smi", ""),
            ("nvcc", ""),
            ("ncu", NCU),
        ):
            path = programs / name
            path.write_text(text or "#!/bin/sh\n")
            path.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "REAL_PYTHON": sys.executable,
            "TMPDIR": str(folder),
        }
        self.environment.pop("PYTHON", None)

    def check(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(SCRIPT), *(arguments or (str(self.out),))],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    @property
    def summary(self) -> str:
        return (self.out / "summary.txt").read_text()

    def call(self, part: str) -> str:
        (found,) = [line for line in self.calls.read_text().splitlines() if part in line]
        return found


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_everything_passes(machine: Machine) -> None:
    done = machine.check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    verdicts = {line.split()[0]: line.split()[3].rstrip(":") for line in machine.summary.splitlines()[:10]}
    assert verdicts == dict.fromkeys(
        [
            "build",
            "imports",
            "gpu_tests",
            "memcheck",
            "racecheck",
            "initcheck",
            "other_tests",
            "counters",
            "compiled",
            "benchmarks",
        ],
        "passed",
    )
    assert "ERROR SUMMARY: 0 errors" in machine.summary
    assert machine.summary.count("9 of 9 cases (100 %) on cuda, 5 of 5 losses and operators, 0 problems") == 3
    assert machine.summary.count("ceilings: 4000 GB/s") == 2
    assert machine.summary.count("test_training.py: needs pydantic, which is not installed") == 1
    assert "needs a GPU" not in machine.summary
    assert "not installed: inf_cl\n" in machine.summary
    assert "not installed: liger_kernel" not in machine.summary

    assert (machine.out / "build.log").read_text() == "CCP_FAST_CUDA=ON\n"
    gpu_tests = machine.call("-m gpu and not slow")
    assert gpu_tests.endswith("-n 3 --dist load")
    assert "-m not gpu and not slow" in machine.call("other_tests.xml")
    for tool, at_least in (("memcheck", "50"), ("racecheck", "25"), ("initcheck", "50")):
        called = machine.call(f"sanitizer --tool {tool}")
        assert called.endswith(f"--at-least {at_least}")
        # initcheck has to see torch's kernels write what ours read.
        assert ("--kernel-name kns=ccp --error-exitcode 9" in called) == (tool != "initcheck")
    assert "--compile" in machine.call("compiled.json")
    assert "--kernels" in machine.call("benchmarks.json")
    left = {path.name for path in machine.out.parent.iterdir()}
    assert left == {"out", "calls", "programs"}  # its own folder is gone


def test_a_step_that_fails_stops_no_other(machine: Machine) -> None:
    done = machine.check(FAILING_TOOL="racecheck", GPU_TESTS_STATUS="1", XDIST_STATUS="1")
    assert done.returncode == 1
    failed = [line.split()[0] for line in machine.summary.splitlines() if "FAILED" in line]
    assert sorted(failed) == ["gpu_tests", "racecheck"]
    assert "exit status 9" in machine.summary
    assert machine.call("-m gpu and not slow").endswith("gpu_tests.xml")  # without xdist, one after the other
    assert "benchmarks.json" in machine.calls.read_text()


def test_tests_that_were_all_skipped_are_a_failure(machine: Machine) -> None:
    done = machine.check(SKIPPED="5")
    assert done.returncode == 1
    assert "FAILED: no test ran on the GPU" in machine.summary


def test_counters_that_are_kept_from_us_are_no_failure(machine: Machine) -> None:
    refused = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission"
    done = machine.check(COUNTERS=refused)
    assert done.returncode == 0, done.stdout
    assert f"left out: {refused}" in machine.summary
    assert "--cache-control all" in machine.call("ncu ")
    assert machine.call("ncu ").endswith("benchmarks/gpu_passes.py")


def test_what_is_missing_ends_it_before_the_build(machine: Machine) -> None:
    done = machine.check(PROGRAMS="these are missing: nvcc; the package rich")
    assert done.returncode == 2
    assert done.stderr.endswith("gpu_check.sh: these are missing: nvcc; the package rich\n")
    assert done.stderr.count("\n") == 1
    assert "-m pip" not in machine.calls.read_text()


def test_imports_that_fail_are_told_and_stop_nothing(machine: Machine) -> None:
    done = machine.check(IMPORTS="these are missing: pydantic, which ccp_fast.bench.command imports")
    assert done.returncode == 1
    assert "these are missing: pydantic, which ccp_fast.bench.command imports" in machine.summary
    assert [line.split()[0] for line in machine.summary.splitlines() if "FAILED" in line] == ["imports"]
    assert "benchmarks.json" in machine.calls.read_text()


def test_nothing_runs_without_a_build(machine: Machine) -> None:
    done = machine.check(PIP_STATUS="3")
    assert done.returncode == 1
    assert "build" in machine.summary
    assert "exit status 3" in machine.summary
    assert "-m pytest" not in machine.calls.read_text()


def test_time_is_limited(machine: Machine) -> None:
    done = machine.check(BENCH_SECONDS="30", GPU_CHECK_SECONDS="3")
    assert done.returncode == 1
    assert "FAILED: longer than" in machine.summary
    assert "NOT RUN: no time was left" in machine.summary


def test_a_folder_is_asked_for(machine: Machine, tmp_path: Path) -> None:
    done = subprocess.run(["bash", str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ")
    done = machine.check(str(tmp_path / "a"), "b")
    assert done.returncode == 2


def test_without_a_gpu_it_is_one_sentence(machine: Machine) -> None:
    done = machine.check(GPU="no")
    assert done.returncode == 2
    assert done.stderr.endswith("expected a GPU that torch can use: AssertionError: torch 2 finds none\n")
    assert done.stderr.count("\n") == 1


def test_programs_and_packages_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_preflight

    here = {"nvcc", "compute-sanitizer", "ninja", "timeout"}  # CMake as a package
    monkeypatch.setattr(shutil, "which", lambda name: name if name in here else None)
    monkeypatch.setattr(gpu_preflight, "find_spec", lambda name: None if name in ("rich", "pip") else name)
    assert gpu_preflight.missing_for_the_build() == ["the package pip", "the package rich"]
    monkeypatch.setattr(gpu_preflight, "find_spec", lambda name: None if name == "cmake" else name)
    assert gpu_preflight.missing_for_the_build() == ["cmake"]


def test_the_passes_for_nsight_compute_run_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_passes

    monkeypatch.setattr(sys, "argv", ["gpu_passes.py", "--size", "toy", "--device", "cpu"])
    gpu_passes.main()
    ran = capsys.readouterr().out.splitlines()
    assert "losses triplet sop float32" in ran
    assert {line.split()[0] for line in ran} == {"losses", "k-center", "projection"}
