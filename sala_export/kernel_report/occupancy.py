"""How many blocks of a kernel a multiprocessor holds at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_REGISTERS = 65536
_WARP = 32
_REGISTERS_PER_ALLOCATION = 256
_SHARED_PER_ALLOCATION = 128
SHARED_RESERVED_PER_BLOCK = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Multiprocessor:
    """CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    warps: int
    blocks: int
    shared_bytes: int


MULTIPROCESSORS: Mapping[int, Multiprocessor] = {
    86: Multiprocessor(warps=48, blocks=16, shared_bytes=100 << 10),
    89: Multiprocessor(warps=48, blocks=24, shared_bytes=100 << 10),
    90: Multiprocessor(warps=64, blocks=32, shared_bytes=228 << 10),
    120: Multiprocessor(warps=48, blocks=24, shared_bytes=100 << 10),
}
"""By 10 * major + minor."""


def blocks_per_multiprocessor(sm: int, *, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks that fit at once: the least of what warps, registers, shared memory and the block limit allow.

    Args: per block `threads` and `shared_bytes`, per thread `registers`.
    """
    limits = MULTIPROCESSORS[sm]
    warps = -(-threads // _WARP)
    registers_per_warp = -(-registers * _WARP // _REGISTERS_PER_ALLOCATION) * _REGISTERS_PER_ALLOCATION
    shared = -(-shared_bytes // _SHARED_PER_ALLOCATION) * _SHARED_PER_ALLOCATION + SHARED_RESERVED_PER_BLOCK
    return min(
        limits.blocks,
        limits.warps // warps,
        _REGISTERS // registers_per_warp // warps,
        limits.shared_bytes // shared,
    )
