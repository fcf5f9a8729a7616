"""Tile sizes of the LightningAttention kernels, by architecture.

Chosen by static gates, not yet timed on a GPU: registers without spills and shared memory as the compiler reports them
for bfloat16 and float16 at head_dim 64 and 128, and the account of README.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.launch import Tile, same_tile

WANTED_PROGRAMS = 128
"""Programs that a prefill is cut into, if it is long enough: 4 segments of SALA's 32 heads."""
LEAST_SEGMENT = 512
"""Tokens that are worth a segment of their own: what a segment hands on moves as many bytes as some 120 tokens of
its head's q, k, v and o."""
DECODE_VALUE_TILES = 4
"""Programs per head in decode; 32 channels of 128 are one 128-byte line of the state."""

CARRY: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_T": 32, "BLOCK_V": 32}, num_warps=4, num_stages=2))
PREFILL: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_T": 32}, num_warps=8, num_stages=2))
DECODE: Mapping[int, Tile] = same_tile(Tile(constexprs={"VALUE_TILES": DECODE_VALUE_TILES}, num_warps=4, num_stages=1))
PREFILL_OUTPUT: Mapping[int, Tile] = same_tile(
    Tile(constexprs={"VALUE_TILES": 1, "BLOCK_C": 1024, "BLOCK_S": 128}, num_warps=4, num_stages=1)
)
DECODE_OUTPUT: Mapping[int, Tile] = same_tile(
    Tile(constexprs={"VALUE_TILES": DECODE_VALUE_TILES, "BLOCK_C": 1024, "BLOCK_S": 128}, num_warps=4, num_stages=1)
)
