"""The GPU that a run was made on: what it is, its driver, how fast it was clocked."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

import torch

import ccp_fast
from ccp_fast._system.environment import describe

_PACKAGES = (
    "triton",
    "liger-kernel",
    "cut-cross-entropy",
    "inf-cl",
    "pytorch-metric-learning",
    "torch-cluster",
    "torch-fps",
    "torch-quickfps",
)
_STATE = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "temperature.gpu", "power.draw")


def missing() -> str | None:
    """Why nothing can be measured here, in one sentence; None: it can."""
    reasons = ccp_fast.info()["missing"]
    for what in ("CUDA devices", "CUDA kernels"):
        if what in reasons:
            return f"ccp-bench gpu: expected {what}, got none: {reasons[what]}"
    return None


def facts(index: int) -> dict[str, Any]:
    """What each row keeps: device, driver, versions, commit, date."""
    info, properties = ccp_fast.info(), torch.cuda.get_device_properties(index)
    return {
        "device": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "driver": query(index, ("driver_version",))["driver_version"],
        "threads": None,  # of the CPU, which do not matter here
        "cpu": info["cpu"],
        "architectures": info["cuda_architectures"],
        "versions": {
            "ccp_fast": info["version"],
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": info["python"],
            "compiler": info["compiler"],
            **{name.replace("-", "_"): _version(name) for name in _PACKAGES},
        },
        "commit": describe(1)["git_commit"],
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def state(index: int) -> dict[str, float | None]:
    """Clocks in MHz, temperature in °C, power in W; None where nvidia-smi does not tell."""
    return {name: _number(value) for name, value in query(index, _STATE).items()}


def utilization(index: int) -> float | None:
    """Percent of the last second in which something ran."""
    return _number(query(index, ("utilization.gpu",))["utilization.gpu"])


def query(index: int, fields: tuple[str, ...]) -> dict[str, str | None]:
    """Fields of `nvidia-smi --query-gpu`; None for each where it is missing or does not answer."""
    program = shutil.which("nvidia-smi")
    answer = ""
    if program is not None:
        device = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
        command = [program, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "-i", device]
        try:
            answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout
        except (OSError, subprocess.SubprocessError):
            answer = ""
    return parse(answer, fields)


def parse(answer: str, fields: tuple[str, ...]) -> dict[str, str | None]:
    """One line of comma-separated values; what is not supported is None."""
    values = [value.strip() for value in answer.strip().split(",")]
    if len(values) != len(fields):
        return dict.fromkeys(fields)
    return {
        name: None if not value or value.startswith("[") else value
        for name, value in zip(fields, values, strict=True)
    }


def _number(value: str | None) -> float | None:
    try:
        return None if value is None else float(value)
    except ValueError:
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
