#!/usr/bin/env bash
# Proves and measures ccp_fast on the GPU of this machine, without network, in under nine minutes:
#
#   benchmarks/gpu_check.sh FOLDER
#
# Builds this checkout for the GPU that is here, runs the tests that need one, then compute-sanitizer on small cases
# beside the rest of the tests, then the benchmarks. A step that fails or takes too long does not stop the others.
# FOLDER gets summary.txt, a log of every step, the tests' JUnit XML and the benchmarks' JSON.
#
# Needs the CUDA toolkit (nvcc, compute-sanitizer), CMake, ninja and Python with torch, numpy, pip,
# scikit-build-core, pybind11, pytest, hypothesis, typer and rich; pytest-xdist makes the tests faster. One sentence says
# which of them are missing (gpu_preflight.py). The summary names the peers that are not installed, and the tests that
# were left out for want of a package. PYTHON chooses another interpreter than python3, GPU_CHECK_SECONDS another time
# for everything.
# Ends with 1 if anything failed, with 2 where there is no GPU or something is missing.
set -uo pipefail

readonly TOTAL=${GPU_CHECK_SECONDS:-515}
readonly COMPILED='proxy_nca-k1+1e6,c2+1e6+float32' # the cases that torch.compile competes in
readonly OPTIONAL='pytorch_metric_learning liger_kernel cut_cross_entropy inf_cl torch_cluster torch_fps torch_quickfps'

if (($# != 1)); then
  echo "usage: $0 FOLDER" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin

host_python=${PYTHON:-python3}
if ! reason=$("$host_python" -c 'import torch
assert torch.cuda.is_available(), f"torch {torch.__version__} finds none"' 2>&1); then
  echo "$0: expected a GPU that torch can use: ${reason##*$'\n'}" >&2
  exit 2
fi

if ! reason=$("$host_python" benchmarks/gpu_preflight.py 2>&1); then
  echo "$0: $reason" >&2
  exit 2
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
touch "$work/verdicts"
python=$work/venv/bin/python
# The installed package is meant, not the checkout's sources that lie in the current folder.
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

# verdict NAME SECONDS TEXT
verdict() {
  printf '%-12s %4d s  %s\n' "$@" | tee -a "$work/verdicts"
}

# step NAME SECONDS COMMAND...: runs the command under a time limit, its output in NAME.log.
step() {
  local name=$1 limit=$2 began=$SECONDS status=0
  shift 2
  ((limit <= TOTAL - SECONDS)) || limit=$((TOTAL - SECONDS))
  if ((limit <= 0)); then
    verdict "$name" 0 'NOT RUN: no time was left'
    return 1
  fi
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1 </dev/null || status=$?
  case $status in
    0) verdict "$name" $((SECONDS - began)) passed ;;
    124 | 137) verdict "$name" $((SECONDS - began)) "FAILED: longer than $limit s" ;;
    *) verdict "$name" $((SECONDS - began)) "FAILED: exit status $status" ;;
  esac
  return "$status"
}

machine() {
  nvidia-smi
  nvidia-smi --query-gpu=name,driver_version,compute_cap,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem --format=csv
  nvcc --version
  "$host_python" --version
  "$host_python" -c 'import torch; print("torch", torch.__version__, "CUDA", torch.version.cuda)'
  uname -a
  nproc
}

# An environment of its own that sees every package of the interpreter's. --system-site-packages would not do: where the
# interpreter is itself that of a virtual environment, it means the packages of the system below.
environment() {
  "$host_python" -m venv --without-pip "$work/venv" || return
  local packages
  packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || return
  "$host_python" -c 'import site, sysconfig
for path in dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]):
    print(path)' >"$packages/host.pth"
}

# workers MOST DISTRIBUTION: pytest's options for tests side by side, where that is installed.
workers() {
  if "$python" -c 'import xdist' 2>/dev/null; then
    echo "-n $1 --dist $2"
  fi
}

# The tool's own time beside the other tests, and the share of the cases that it must have reached in it.
sanitizer() {
  local tool=$1 at_least=$2 option filter=()
  # Kernels of torch itself are not the question, but initcheck has to see them write. Older releases have another name
  # for the option.
  for option in --kernel-name --kernel-regex; do
    if [[ $tool != initcheck ]] && compute-sanitizer --help 2>/dev/null | grep -q -- "$option"; then
      filter=("$option" kns=ccp)
      break
    fi
  done
  # The forward pass for Hopper, where this is one and a case can take it.
  step "$tool" 150 env CCP_FAST_HOPPER=1 compute-sanitizer --tool "$tool" "${filter[@]}" --error-exitcode 9 --launch-timeout 120 \
    "$python" benchmarks/gpu_small_cases.py --seconds 115 --at-least "$at_least"
}

prove() {
  local at_once emulator
  export CI=1 # the same examples in every run
  local tests=("$python" -m pytest python_tests -p no:cacheprovider -rs)

  # Several test files want the emulator, and it is built once: on the CPU, while the GPU is tested.
  (cd python_tests && timeout 140 nice "$python" -c 'import sys
sys.path.insert(0, "")
import emulator
emulator.load()
emulator.load(sanitize=True)') >"$out/emulator.log" 2>&1 </dev/null &
  emulator=$!
  # The largest tests take 16 GB each.
  at_once=$("$python" -c 'import torch; print(max(1, min(4, int(torch.cuda.mem_get_info()[0] / 20e9))))')
  # shellcheck disable=SC2046 # options, word by word
  step gpu_tests 125 "${tests[@]}" -m 'gpu and not slow' --junitxml="$out/gpu_tests.xml" \
    $(workers "${at_once:-1}" load)
  at_least_one "$out/gpu_tests.xml" || verdict gpu_tests 0 'FAILED: no test ran on the GPU'
  wait "$emulator"

  sanitizer memcheck 50 &
  sanitizer racecheck 25 & # the slowest
  sanitizer initcheck 50 &
  # shellcheck disable=SC2046
  step other_tests 150 env OMP_NUM_THREADS=2 "${tests[@]}" -m 'not gpu and not slow' \
    --junitxml="$out/other_tests.xml" $(workers $(($(nproc) / 2 + 1)) loadfile)
  wait
}

# A run of tests in which all were skipped has shown nothing.
at_least_one() {
  "$python" -c 'import sys
import xml.etree.ElementTree as ElementTree
suites = list(ElementTree.parse(sys.argv[1]).iter("testsuite"))
sys.exit(sum(int(suite.get("tests")) - int(suite.get("skipped")) for suite in suites) <= 0)' "$1" 2>/dev/null
}

# Each kernel alone with cold caches, by the GPU's own counters, which many machines keep from us: no failure then.
counters() {
  local began=$SECONDS limit=$((TOTAL - SECONDS - 60)) said
  if ! command -v ncu >/dev/null || ((limit < 10)); then
    verdict counters 0 'left out: no Nsight Compute (ncu), or no time'
    return
  fi
  if timeout --kill-after=10 $((limit < 45 ? limit : 45)) ncu --csv --page raw --cache-control all --clock-control none \
    --section LaunchStats --section Occupancy --section SpeedOfLight --kernel-name-base demangled --kernel-name regex:ccp:: \
    "$python" benchmarks/gpu_passes.py >"$out/counters.csv" 2>"$out/counters.log" </dev/null &&
    ! grep -q 'ERR_' "$out/counters.csv"; then
    verdict counters $((SECONDS - began)) 'passed: counters.csv'
  else
    said=$(grep -hm1 'ERR_\|==ERROR' "$out"/counters.{csv,log})
    verdict counters $((SECONDS - began)) "left out: ${said:-see counters.log}"
  fi
}

measure() {
  local left bench=("$python" -m ccp_fast.bench.main gpu --seconds 0.2)
  counters
  step compiled 75 "${bench[@]}" --compile --only "$COMPILED" --runs 1 --out "$out/compiled.json"
  left=$((TOTAL - SECONDS))
  step benchmarks "$left" "${bench[@]}" --kernels --limit $((left > 50 ? left - 25 : left / 2)) \
    --out "$out/benchmarks.json"
}

summary() {
  local package
  cat "$work/verdicts"
  echo
  tail -qn 1 "$out"/{gpu_tests,other_tests}.log 2>/dev/null
  grep -hE 'ERROR SUMMARY|RACECHECK SUMMARY|^[0-9]+ of [0-9]+ cases ' "$out"/{memcheck,racecheck,initcheck}.log 2>/dev/null
  grep -h '^these are missing' "$out/imports.log" 2>/dev/null
  grep -hE '^ceilings|BELOW|^ccp_fast, Hopper path|^FAILED|^left out' "$out"/{compiled,benchmarks}.log 2>/dev/null
  grep -hE '^SKIPPED .*needs .*not installed' "$out/other_tests.log" 2>/dev/null
  for package in $OPTIONAL; do
    "$host_python" -c 'import importlib.util, sys
sys.exit(importlib.util.find_spec(sys.argv[1]) is None)' "$package" || echo "not installed: $package"
  done
  echo "$SECONDS s in all"
}

machine >"$out/machine.log" 2>&1
if ! environment >"$out/environment.log" 2>&1; then
  verdict environment 0 'FAILED: see environment.log'
elif step build 200 env CCP_FAST_CUDA=ON CMAKE_BUILD_PARALLEL_LEVEL="$(nproc)" \
  "$python" -m pip install --verbose --no-index --no-build-isolation --no-deps \
  --config-settings=build-dir="$work/build" .; then
  "$python" -m ccp_fast_info >>"$out/machine.log" 2>&1
  step imports 60 "$python" benchmarks/gpu_preflight.py --installed
  prove
  measure # alone on the machine
fi
summary | tee "$out/summary.txt"
! grep -qE 'FAILED|NOT RUN' "$work/verdicts"
