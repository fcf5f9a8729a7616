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
    # Programs of prefill's selection that have scratch at a time: two for each of 188 multiprocessors.
    "SELECT_PROGRAMS": 384,
    # Blocks of a token that may reach the lower bound of its choice; in random order 71 do.
    "SURVIVOR_SLOTS": 256,
    # Programs per key head in decode. With SALA's two: 128 and 96, for the 84 to 170 multiprocessors of the targets; 48
    # parts of SALA's 96 taken blocks have two each.
    "SELECT_SPLITS": 64,
    "ATTEND_SPLITS": 48,
}

APPEND: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_T": 16, "BLOCK_N": 16}, num_warps=4, num_stages=1))

UNION_TOKENS: Mapping[int, int] = {86: 4, 89: 2, 90: 4, 120: 2}
"""Neighbouring tokens whose chosen blocks selection lists together, for gather."""

SELECT_TOKENS = 8
"""Tokens of a tile of selection, for each a row of scratch."""

# The product K1 Q^T leaves a thread these elements of a tile, so that nearly all of its pooling is in registers.
# m16n8k16, eight warps as two by four: columns in steps of 1, 32 and 64, rows in steps of 8, 32 and 64. So four heads,
# then eight tokens, then four heads; and eight blocks, two of their keys, two blocks, two keys.
_THREADS = {"NEAR_HEADS": 4, "NEAR_TOKENS": 8, "NEAR_BLOCKS": 8, "MIDDLE_BLOCKS": 2}
# wgmma of 64 x 64 elements a group of four warps: columns in steps of 1, 8, 16 and 32, rows in a step of 8.
_WARP_GROUPS = {"NEAR_HEADS": 2, "NEAR_TOKENS": 4, "NEAR_BLOCKS": 1, "MIDDLE_BLOCKS": 4}
# Tensor cores bind SM86 to SM120: 128 keys a turn, one program in a multiprocessor (shared memory). On SM90 exp2 and
# the issue of instructions do as much: two programs, so that one multiplies while the other pools (registers).
SELECT: Mapping[int, Tile] = {
    sm: Tile(
        constexprs={
            "BLOCK_T": SELECT_TOKENS,
            "BLOCK_K": 64 if sm == 90 else 128,
            "BLOCK_K2": 64,
            "UNION_T": union,
            **(_WARP_GROUPS if sm == 90 else _THREADS),
        },
        num_warps=8,
        num_stages=3,
    )
    for sm, union in UNION_TOKENS.items()
}

# One program in a multiprocessor either way (registers).
_ATTEND = Tile(constexprs={"BLOCK_T": 8, "BLOCK_N": 64}, num_warps=8, num_stages=3)
ATTEND: Mapping[int, Tile] = same_tile(_ATTEND)

# One warp for the 16 rows of a token: no exchange between warps, eight programs in a multiprocessor. 32 keys a turn
# spill on SM90.
GATHER: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_N": 16}, num_warps=1, num_stages=2))

DECODE_APPEND: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_T": 1, "BLOCK_N": 16}, num_warps=4, num_stages=1))
DECODE_NORMALISE: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_B": 64}, num_warps=4, num_stages=3))
DECODE_SCORE: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_B": 64}, num_warps=4, num_stages=3))
DECODE_CHOOSE: Mapping[int, Tile] = same_tile(Tile(num_warps=8, num_stages=1))
# 64 keys a turn spill on SM90, where Triton multiplies by warp groups.
DECODE_ATTEND: Mapping[int, Tile] = {
    **same_tile(Tile(constexprs={"BLOCK_N": 64}, num_warps=4, num_stages=2)),
    90: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=2),
}
DECODE_MERGE: Mapping[int, Tile] = same_tile(Tile(constexprs={"PADDED_SPLITS": 64}, num_warps=4, num_stages=1))

FLOAT32_HEAD_DIM: Mapping[int, int] = {**dict.fromkeys(AOT_ARCHITECTURES, 32), 90: 128}
"""`KernelSet.float32_head_dim`: the tiles above are those of 16-bit types, and take twice the room in float32."""
