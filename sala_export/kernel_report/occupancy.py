"""How many blocks of a kernel a multiprocessor holds at once. The tensor memory of SM110 is left out of account."""

from __future__ import annotations

from ..ops.common.targets import ARCHITECTURES, SHARED_RESERVED_PER_BLOCK

_REGISTERS = 65536
_WARP = 32
_REGISTERS_PER_ALLOCATION = 256
_SHARED_PER_ALLOCATION = 128


def blocks_per_multiprocessor(sm: int, *, threads: int, registers: int, shared_bytes: int) -> int:
    """Blocks that fit at once: the least of what warps, registers, shared memory and the block limit allow.

    Args: per block `threads` and `shared_bytes`, per thread `registers`.
    """
    limits = ARCHITECTURES[sm]
    warps = -(-threads // _WARP)
    registers_per_warp = -(-registers * _WARP // _REGISTERS_PER_ALLOCATION) * _REGISTERS_PER_ALLOCATION
    shared = -(-shared_bytes // _SHARED_PER_ALLOCATION) * _SHARED_PER_ALLOCATION + SHARED_RESERVED_PER_BLOCK
    return min(
        limits.blocks,
        limits.warps // warps,
        _REGISTERS // registers_per_warp // warps,
        limits.shared_bytes // shared,
    )
