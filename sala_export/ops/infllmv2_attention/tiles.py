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
    # Programs of prefill's selection, which draw tiles of tokens until there are none, and the tokens of their scratch.
    "SELECT_ROWS": 3072,
    # Blocks of a token that may survive the lower bound, `block_choice.SURVIVORS`.
    "SURVIVOR_SLOTS": 256,
    # Programs per key head in decode. With SALA's two: 128 and 96, for the 84 to 170 multiprocessors of the targets; 48
    # parts of SALA's 96 taken blocks have two each.
    "SELECT_SPLITS": 64,
    "ATTEND_SPLITS": 48,
}

APPEND: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_T": 16, "BLOCK_N": 16}, num_warps=4, num_stages=1))

UNION_TOKENS: Mapping[int, int] = {86: 4, 89: 2, 90: 4, 120: 2}

_SELECT_16 = {"BLOCK_T": 8, "BLOCK_K": 128, "BLOCK_K2": 64, "CHOICE_T": 8, "NEAR_TOKENS": 8, "NEAR_HEADS": 4, "NEAR_BLOCKS": 8, "MIDDLE_BLOCKS": 2}
_SELECT_90 = {"BLOCK_T": 16, "BLOCK_K": 64, "BLOCK_K2": 64, "CHOICE_T": 8, "NEAR_TOKENS": 4, "NEAR_HEADS": 2, "NEAR_BLOCKS": 1, "MIDDLE_BLOCKS": 4}
SELECT: Mapping[int, Tile] = {
    sm: Tile(constexprs={**(_SELECT_90 if sm == 90 else _SELECT_16), "UNION_T": union}, num_warps=8, num_stages=3)
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
