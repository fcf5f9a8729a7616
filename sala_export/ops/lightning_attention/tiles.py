"""Tile sizes of the LightningAttention kernels, by architecture.

Chosen by static gates, not yet timed on a GPU: no spilled register, shared memory within the architecture's limit for
bfloat16 and float16 at head_dim 64 and 128, blocks per multiprocessor, and the account of bytes in README.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.launch import Tile, same_tile
from ..common.targets import ARCHITECTURES

_PREFILL_VALUE_TILES = 8
_DECODE_VALUE_TILES = 4
"""Programs per head in decode: 32 channels of 128 are one 128-byte line of the state."""
CONSTANTS: Mapping[str, int] = {
    # Segments are whole multiples of it, and of all BLOCK_T. LEAST_SEGMENT >= MOST_SEGMENTS * SEGMENT_UNIT: rounded up
    # to whole units, segments leave none of them empty.
    "SEGMENT_UNIT": 64,
    "MOST_SEGMENTS": 8,
    # Tokens of the shortest segment, before that rounding. What it hands on, written and read, is as many bytes as 128
    # tokens of q, k, v, o.
    "LEAST_SEGMENT": 512,
    # WANTED_PROGRAMS of no tile is larger: workspaces are sized by it.
    "MOST_PROGRAMS": 170,
    # What a segment hands on is summed by up to PARTS programs side by side, if each has LEAST_PART tokens. Four parts
    # would save as much time there as it takes to read their sums.
    "PARTS": 2,
    "LEAST_PART": 1024,
    # Sums of squares per head in prefill: of 16 channels of 128, which one warp owns.
    "PREFILL_VALUE_TILES": _PREFILL_VALUE_TILES,
    "DECODE_VALUE_TILES": _DECODE_VALUE_TILES,
}


SEGMENTS = "min(min(max(fdiv(WANTED_PROGRAMS, B * num_heads), 1), MOST_SEGMENTS), cdiv(T, LEAST_SEGMENT))"
"""Segments of a prefill (`expr.py`): of all heads together at most so many programs, or one each."""
CARRY_SLOTS = (
    "B * num_heads + PARTS * min(MOST_PROGRAMS, B * num_heads * (min(MOST_SEGMENTS, cdiv(T, LEAST_SEGMENT)) - 1))"
)
"""States in the workspace, of all heads: before the chunk, and of each part. A longer or wider call has no fewer:
TensorRT asks for the largest call alone."""
REACH = 22.2
"""A token is left out of what its segment hands on if it has decayed by e^-22.2 = 2^-32 there, a 256th of the rounding
of a sum in fp32."""

_PROGRAMS = {86: 168, 87: 32, 89: 128, 90: 132, 110: 20, 120: 170, 121: 48}
"""Programs of prefill that make full waves: two on the 84 multiprocessors of an RTX A6000 and the 16 of a Jetson AGX
Orin, one on the others."""


def _carry(sm: int, block_t: int) -> Tile:
    return Tile(constexprs={"BLOCK_T": block_t, "WANTED_PROGRAMS": _PROGRAMS[sm]}, num_warps=8, num_stages=3)


def _prefill(sm: int, block_t: int, rope_ahead: int) -> Tile:
    constants = {"BLOCK_T": block_t, "ROPE_AHEAD": rope_ahead, "WANTED_PROGRAMS": _PROGRAMS[sm]}
    return Tile(constexprs={**constants, "VALUE_TILES": _PREFILL_VALUE_TILES}, num_warps=8, num_stages=3)


CARRY: Mapping[int, Tile] = {sm: _carry(sm, 64 if sm == 90 else 32) for sm in ARCHITECTURES}
# Two tiles on their way hide the latency of memory. With 64 tokens they fill the shared memory of an H100, with 32 that
# of the others if the angles wait in registers.
PREFILL: Mapping[int, Tile] = {sm: _prefill(sm, 64, 0) if sm == 90 else _prefill(sm, 32, 1) for sm in ARCHITECTURES}
# BLOCK_C and BLOCK_S hold a whole row of SALA, 32 heads of 128 channels, so that all loads of the last program are on
# their way together.
DECODE: Mapping[int, Tile] = same_tile(
    Tile(
        constexprs={"VALUE_TILES": _DECODE_VALUE_TILES, "BLOCK_C": 4096, "BLOCK_S": 128},
        num_warps=4,
        num_stages=1,
    )
)
OUTPUT: Mapping[int, Tile] = same_tile(
    Tile(constexprs={"VALUE_TILES": _PREFILL_VALUE_TILES, "BLOCK_C": 1024, "BLOCK_S": 256}, num_warps=4, num_stages=1)
)

FLOAT32_HEAD_DIM: Mapping[int, int] = {**dict.fromkeys(ARCHITECTURES, 64), 90: 128}
"""`KernelSet.float32_head_dim`: the tiles above are those of 16-bit types, and take twice the room in float32."""
