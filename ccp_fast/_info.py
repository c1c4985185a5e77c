"""What is installed and what is missing, for `ccp_fast.info()` and the command `ccp-info`.

Nothing here needs the compiled operators, or even torch: whatever is broken, this still tells why.
"""

from __future__ import annotations

import os
import platform
from importlib import import_module, metadata, util
from pathlib import Path
from typing import NamedTuple, TypedDict

__version__ = "0.1.0"

# Whether benchmarks/results has a run of ccp-bench on a GPU; a test compares them.
CUDA_KERNELS_HAVE_RUN = False
_NEVER_RUN = "none has run on a GPU yet, results and speed there are unknown"

_INSTRUCTIONS = {"avx2": "AVX2", "avx512": "AVX-512"}


class Info(TypedDict):
    """One installation of ccp_fast on one machine."""

    version: str
    library: str | None  # path of the compiled operators; None: they do not load
    compiler: str | None  # that compiled them
    torch_headers: str | None  # the torch they were compiled against
    python: str
    platform: str
    numpy: str | None
    torch: str | None
    torch_cuda: str | None  # the CUDA release torch was built for; None: a CPU build
    faiss: bool
    cpu: str
    threads: int | None  # that torch and the operators use
    cpu_capability: str | None  # the instruction set in use: portable, avx2, avx512
    cpu_capabilities_built: list[str]
    cuda_built: bool
    cuda_architectures: list[str]
    cuda_never_run: str | None  # what that means, until the kernels have run on a GPU; None: they have
    cuda_devices: list[str]
    hopper: str | None  # the state of the forward kernels for compute capability 9.0; None: not built
    missing: dict[str, str]  # what is not there: why, and what to do about it


class _Device(NamedTuple):
    name: str
    capability: tuple[int, int]
    memory: int  # bytes

    @property
    def architecture(self) -> str:
        return f"{self.capability[0]}{self.capability[1]}"

    def __str__(self) -> str:
        return f"{self.name} (sm_{self.architecture}, {self.memory / 2**30:.0f} GiB)"


def info() -> Info:
    """Versions, what was built, for which processors, what this machine has, and why something is missing.

    `missing` maps each thing that is not there ("operators", "torch", "CUDA kernels", "CUDA devices",
    "AVX-512", "faiss") to the reason in plain words. A broken installation does not raise:
    `missing["operators"]` says why they do not load.
    """
    missing: dict[str, str] = {}
    library, built = _operators(missing)
    torch_version, torch_cuda, threads, devices = _torch(missing)
    architectures = _list(built.get("cuda_architectures", ""))
    capabilities = _list(built.get("cpu_capabilities_built", ""))
    capability = built.get("cpu_capability")
    if library and not architectures:
        missing["CUDA kernels"] = built.get("cuda_missing", "this build does not say why")
    for device in devices:
        if architectures and not any(_runs_on(name, device.capability) for name in architectures):
            missing[f"CUDA kernels for {device.name}"] = (
                f"it is an sm_{device.architecture}, and they were built for {', '.join(architectures)}: install "
                f"again on this machine, or anywhere with CCP_FAST_CUDA_ARCHS={device.architecture}"
            )
    if library and built.get("version") != __version__:
        missing["operators of this version"] = (
            f"the compiled operators are those of ccp_fast {built.get('version', '(unknown)')}, "
            f"the Python code is {__version__}: install again, with the same command as before"
        )
    if capability and capability != capabilities[-1]:
        missing[_INSTRUCTIONS[capabilities[-1]]] = _why_lesser(capability)
    if capabilities == ["portable"]:
        missing["vector instructions"] = f"on {platform.machine()} only the portable kernels exist"
    faiss = util.find_spec("faiss") is not None
    if not faiss:
        missing["faiss"] = "not installed, and nothing here requires it: pip install 'ccp-fast[faiss]'"
    return Info(
        version=__version__,
        library=library,
        compiler=built.get("compiler"),
        torch_headers=built.get("torch"),
        python=platform.python_version(),
        platform=platform.platform(),
        numpy=_installed("numpy"),
        torch=torch_version,
        torch_cuda=torch_cuda,
        faiss=faiss,
        cpu=_cpu_model(),
        threads=threads,
        cpu_capability=capability,
        cpu_capabilities_built=capabilities,
        cuda_built=bool(architectures),
        cuda_architectures=architectures,
        cuda_never_run=None if CUDA_KERNELS_HAVE_RUN else _NEVER_RUN,
        cuda_devices=[str(device) for device in devices],
        hopper=_hopper() if built.get("hopper_built") else None,
        missing=missing,
    )


def format_info(facts: Info) -> str:
    """The text `ccp-info` prints: one fact a line, then what is missing and why."""
    operators = f"{facts['library']} ({facts['compiler']}, torch {facts['torch_headers']})"
    kernels = f"{facts['cpu_capability']} in use; built: {', '.join(facts['cpu_capabilities_built'])}"
    torch_build = f"CUDA {facts['torch_cuda']}" if facts["torch_cuda"] else "no CUDA"
    cuda = ", ".join(facts["cuda_architectures"]) or "missing"
    lines = {
        "ccp_fast": facts["version"],
        "operators": operators if facts["library"] else "missing",
        "python": f"{facts['python']} on {facts['platform']}",
        "torch": f"{facts['torch']} ({torch_build})" if facts["torch"] else "missing",
        "numpy": facts["numpy"] or "missing",
        "faiss": "installed" if facts["faiss"] else "not installed",
        "CPU": facts["cpu"] + (f", {facts['threads']} threads" if facts["threads"] else ""),
        "CPU kernels": kernels if facts["library"] else "missing",
        "CUDA kernels": "; ".join(filter(None, (cuda, facts["cuda_never_run"]))),
        "CUDA devices": ", ".join(facts["cuda_devices"]) or "none",
    }
    if facts["hopper"]:
        lines["Hopper"] = facts["hopper"]
    text = [f"{name:<13} {value}" for name, value in lines.items()]
    if facts["missing"]:
        text += ["", "Missing:"] + [f"  {name}: {reason}" for name, reason in facts["missing"].items()]
    return "\n".join(text)


def _operators(missing: dict[str, str]) -> tuple[str | None, dict[str, str]]:
    """The library's path and what it says about its own build."""
    try:
        library = import_module("ccp_fast._library")
        import torch

        lines = torch.ops.ccp_fast.build_info().splitlines()
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        missing["operators"] = str(error)
        return None, {}
    return str(library.PATH), dict(line.split("=", 1) for line in lines)


def _torch(missing: dict[str, str]) -> tuple[str | None, str | None, int | None, list[_Device]]:
    """Torch's version, the CUDA it was built for, its threads, and the GPUs it sees."""
    try:
        import torch
    except (ImportError, OSError) as error:
        missing["torch"] = f"{error}: pip install torch"
        return None, None, None, []
    version, cuda = str(torch.__version__), torch.version.cuda
    count = torch.cuda.device_count() if cuda else 0
    devices = [_device(torch.cuda.get_device_properties(index)) for index in range(count)]
    if cuda is None:
        missing["CUDA devices"] = f"torch {version} was built without CUDA, so it cannot use a GPU"
    elif not devices:
        missing["CUDA devices"] = f"torch {version} finds no GPU; `nvidia-smi` tells whether the driver does"
    return version, cuda, torch.get_num_threads(), devices


def _device(properties: object) -> _Device:
    name, major, minor, memory = (
        getattr(properties, field) for field in ("name", "major", "minor", "total_memory")
    )
    return _Device(name, (major, minor), memory)


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Does code for "80", "90a" (that GPU alone) or "120+PTX" (also later ones) run on a GPU of this capability?"""
    name, _, ptx = architecture.partition("+")
    if name.endswith("a"):
        return name == f"{capability[0]}{capability[1]}a"
    built = int(name[:-1]), int(name[-1])
    return built <= capability and (bool(ptx) or built[0] == capability[0])


def _hopper() -> str:
    on = os.environ.get("CCP_FAST_HOPPER") == "1"
    state = "on, CCP_FAST_HOPPER=1" if on else "off, CCP_FAST_HOPPER=1 turns it on"
    return f"a forward pass of its own, built, has not run on a GPU: {state}"


def _why_lesser(capability: str) -> str:
    wanted = os.environ.get("CCP_FAST_CPU_CAPABILITY")
    if wanted == capability:
        return f"CCP_FAST_CPU_CAPABILITY={wanted} asks for less"
    return "this processor does not have it"


def _cpu_model() -> str:
    """The processor's name: on Linux only /proc/cpuinfo tells it, and not on every architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _list(text: str) -> list[str]:
    return [item for item in text.split(",") if item]
