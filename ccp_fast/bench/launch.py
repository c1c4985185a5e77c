"""What a GPU is seen to do, and the least that one launch of a kernel must do."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["kernel", "memset", "memcpy"]


class Launch(NamedTuple):
    """One kernel, memset or copy, as torch.profiler tells it; None: it does not say."""

    name: str
    kind: Kind
    grid: tuple[int, ...] = ()
    block: tuple[int, ...] = ()
    registers: int | None = None  # per thread
    shared_bytes: int | None = None  # per block
    size: int | None = None  # bytes of a memset or copy
    microseconds: float = 0.0

    @property
    def key(self) -> Launch:
        """Equal for the same kernel launched in the same way."""
        return self._replace(microseconds=0.0)

    @property
    def stem(self) -> str:
        """The kernel's name without namespaces, parameters and arguments."""
        return stem_of(self.name)


def stem_of(name: str) -> str:
    """Of a kernel's full name, such as `void ccp::cuda::forward<float, 3>(Job)`."""
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return plain.split("<", 1)[0].split("(", 1)[0].rsplit("::", 1)[-1] or name


def parameters_of(name: str) -> str:
    """The template parameters in a kernel's full name, in their brackets; "" of one that has none."""
    begin = name.find("<")
    if begin < 0 or "(" in name[:begin].replace("(anonymous namespace)", ""):
        return ""
    depth = 0
    for end in range(begin, len(name)):
        depth += {"<": 1, ">": -1}.get(name[end], 0)
        if depth == 0:
            return name[begin : end + 1]
    return name[begin:]


class KernelWork(NamedTuple):
    """The least that one launch must do: the floor of a kernel is what the ceilings make of it."""

    tile: str  # what a block has in hand at a time
    flops: float
    bytes: float  # inputs read once, results written once, parts for the kernels that follow among them
    products: bool = False  # the FLOPs are those of matrix products, which matrix units can do
