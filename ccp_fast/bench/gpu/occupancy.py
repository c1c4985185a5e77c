"""How many blocks of a kernel a multiprocessor can have at a time, by the limits that NVIDIA publishes.

Threads, registers and shared memory of a multiprocessor are those that the driver tells. How they are handed out is in
the CUDA programming guide's table of compute capabilities and in the occupancy calculator: registers in 256 a warp,
warps to four schedulers, shared memory in 128 bytes with 1 KiB of the system's for each block.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ccp_fast.bench.launch import Launch

_WARP = 32
_SCHEDULERS = 4
_REGISTER_UNIT, _SHARED_UNIT = 256, 128
_SYSTEM_BYTES = 1024  # of shared memory, in each block
# Resident blocks by compute capability; of one that is not here, as of its generation's first.
_BLOCKS = {
    (8, 0): 32,
    (8, 6): 16,
    (8, 7): 16,
    (8, 9): 24,
    (9, 0): 32,
    (10, 0): 32,
    (10, 3): 32,
    (11, 0): 24,
    (12, 0): 24,
}


@dataclass(frozen=True)
class Limits:
    """Of one multiprocessor."""

    threads: int
    registers: int
    shared_bytes: int
    blocks: int

    @classmethod
    def of_device(cls, properties: object) -> Limits:
        """From torch.cuda.get_device_properties."""
        major, minor = (int(getattr(properties, name)) for name in ("major", "minor"))
        return cls(
            int(getattr(properties, "max_threads_per_multi_processor", 1536)),
            int(getattr(properties, "regs_per_multiprocessor", 65536)),  # so it is since capability 3.7
            int(getattr(properties, "shared_memory_per_multiprocessor", 100 * 1024)),
            _BLOCKS.get((major, minor), _BLOCKS.get((major, 0), 16)),
        )

    def resident(self, launch: Launch) -> int | None:
        """Blocks at a time; None: the launch is not known well enough."""
        if launch.kind != "kernel" or not launch.block or not launch.registers or launch.shared_bytes is None:
            return None
        warps = -(-prod(launch.block) // _WARP)
        of_warp = _round_up(launch.registers * _WARP, _REGISTER_UNIT)
        by_registers = self.registers // _SCHEDULERS // of_warp * _SCHEDULERS // warps
        by_shared = self.shared_bytes // _round_up(launch.shared_bytes + _SYSTEM_BYTES, _SHARED_UNIT)
        return min(self.blocks, self.threads // _WARP // warps, by_registers, by_shared)

    def occupancy(self, launch: Launch) -> float | None:
        """Percent of the warps that a multiprocessor has room for."""
        blocks = self.resident(launch)
        return (
            None
            if blocks is None
            else 100.0 * blocks * -(-prod(launch.block) // _WARP) * _WARP / self.threads
        )


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
