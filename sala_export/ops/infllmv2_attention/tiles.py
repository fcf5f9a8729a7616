"""Constants and tiles of the InfLLMv2Attention kernels, by architecture.

Chosen by static gates, not yet timed on a GPU: no spilled register, shared memory within the architecture's limit for
bfloat16 and float16 at head_dim 64 and 128, and blocks per multiprocessor.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.launch import Tile, same_tile
from ..common.targets import AOT_ARCHITECTURES

CONSTANTS: Mapping[str, int] = {
    # Rows of a token in a dot tile: the least that a tensor core takes.
    "GROUP_ROWS": 16,
    # Chosen blocks of a token that a list holds; SALA chooses 62.
    "SLOTS": 64,
    # Scores of a token that a program searches at once in decode: those of a context of 128K.
    "COLUMNS": 2048,
    # Programs per key head in decode. With SALA's two: 128 and 96, for the 84 to 170 multiprocessors of the targets; 48
    # parts of SALA's 96 taken blocks have two each.
    "SELECT_SPLITS": 64,
    "ATTEND_SPLITS": 48,
}

APPEND: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_T": 16, "BLOCK_N": 16}, num_warps=4, num_stages=1))

# 32 blocks a turn leave room for two programs in a multiprocessor, so that one multiplies while the other pools; 64 do
# not on SM86 to SM120 (shared memory), but on SM90.
_SELECT = Tile(constexprs={"BLOCK_T": 8, "BLOCK_B": 32}, num_warps=8, num_stages=3)
SELECT: Mapping[int, Tile] = {
    86: _SELECT,
    89: _SELECT,
    90: Tile(constexprs={"BLOCK_T": 8, "BLOCK_B": 64}, num_warps=8, num_stages=3),
    120: _SELECT,
}

# One program in a multiprocessor either way (registers).
_ATTEND = Tile(constexprs={"BLOCK_T": 8, "BLOCK_N": 64}, num_warps=8, num_stages=3)
ATTEND: Mapping[int, Tile] = same_tile(_ATTEND)

# One warp for the 16 rows of a token: no exchange between warps, eight programs in a multiprocessor. 32 keys a turn
# spill on SM90.
GATHER: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_N": 16}, num_warps=1, num_stages=2))

# A part of a context of 128K has 32 blocks, and 33 k2 keys: one turn each. So have the 127 keys of a new k2 key.
DECODE_NORMALISE: Mapping[int, Tile] = same_tile(
    Tile(constexprs={"BLOCK_B": 64, "BLOCK_N": 128}, num_warps=4, num_stages=3)
)
DECODE_SCORE: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_B": 32}, num_warps=4, num_stages=2))
# A part has two blocks in the middle of a long context. All of it is asked for at once on SM90, three quarters on SM89 and
# SM120, where 64 keys a turn spill, and half on SM86, whose GPUs have 82 to 84 multiprocessors for 96 programs, so that
# two must fit in one.
DECODE_ATTEND: Mapping[int, Tile] = {
    86: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=3),
    89: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=4),
    90: Tile(constexprs={"BLOCK_N": 64}, num_warps=4, num_stages=3),
    120: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=4),
}
DECODE_MERGE: Mapping[int, Tile] = same_tile(
    Tile(constexprs={"BLOCK_D": 32, "PADDED_SPLITS": 64}, num_warps=4, num_stages=1)
)

FLOAT32_HEAD_DIM: Mapping[int, int] = {**dict.fromkeys(AOT_ARCHITECTURES, 32), 90: 128}
"""`KernelSet.float32_head_dim`: the tiles above are those of 16-bit types, and take twice the room in float32."""
