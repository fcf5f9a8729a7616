"""Tile sizes of the LightningAttention kernels, by architecture.

Chosen by static gates, not yet timed on a GPU: no spilled register, shared memory within the architecture's limit for
bfloat16 and float16 at head_dim 64 and 128, blocks per multiprocessor, and the account of bytes in README.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.launch import Tile, same_tile
from ..common.targets import AOT_ARCHITECTURES

_DECODE_VALUE_TILES = 4
"""Programs per head in decode: 32 channels of 128 are one 128-byte line of the state."""
CONSTANTS: Mapping[str, int] = {
    # Tokens of one turn of the prefill loops. 64 spill at head_dim 128, with any number of warps.
    "BLOCK_T": 32,
    # Programs that a prefill is cut into if it is long enough: 4 segments of SALA's 32 heads, 128 of the 170
    # multiprocessors of an RTX 5090. With a fifth segment the account of bytes exceeds 1.15 of the floor at 8K tokens.
    "WANTED_PROGRAMS": 128,
    # BLOCK_T (MOST_SEGMENTS - 1) < LEAST_SEGMENT: rounded up to whole tiles, segments leave none of them empty.
    "MOST_SEGMENTS": 16,
    # Tokens of the shortest segment, before that rounding. What it hands on, written and read, is as many bytes as 128
    # tokens of q, k, v, o.
    "LEAST_SEGMENT": 512,
    "DECODE_VALUE_TILES": _DECODE_VALUE_TILES,
}
SEGMENTS = "min(min(cdiv(WANTED_PROGRAMS, B * num_heads), MOST_SEGMENTS), cdiv(T, LEAST_SEGMENT))"
"""Segments of a prefill (`expr.py`)."""
REACH = 22.2
"""A token is left out of what its segment hands on if it has decayed by e^-22.2 = 2^-32 there, a 256th of the rounding
of a sum in fp32."""

CARRY: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_V": 64}, num_warps=4, num_stages=2))
PREFILL: Mapping[int, Tile] = {
    86: Tile(num_warps=8, num_stages=2),
    89: Tile(num_warps=8, num_stages=2),
    90: Tile(num_warps=8, num_stages=3),
    120: Tile(num_warps=8, num_stages=2),
}
# BLOCK_C and BLOCK_S hold a whole row of SALA, 32 heads of 128 channels, so that all loads of the last program are on
# their way together.
DECODE: Mapping[int, Tile] = same_tile(
    Tile(
        constexprs={"VALUE_TILES": _DECODE_VALUE_TILES, "BLOCK_C": 4096, "BLOCK_S": 128},
        num_warps=4,
        num_stages=1,
    )
)
OUTPUT: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_C": 1024, "BLOCK_S": 128}, num_warps=4, num_stages=1))

FLOAT32_HEAD_DIM: Mapping[int, int] = {**dict.fromkeys(AOT_ARCHITECTURES, 64), 90: 128}
"""`KernelSet.float32_head_dim`: the tiles above are those of 16-bit types, and take twice the room in float32."""
