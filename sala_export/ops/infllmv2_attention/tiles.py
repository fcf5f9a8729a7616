"""Constants and tiles of the InfLLMv2Attention kernels, by architecture.

Chosen by static gates, not yet timed on a GPU: no spilled register, shared memory within the architecture's limit for
bfloat16 and float16 at head_dim 64 and 128, and blocks per multiprocessor.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.launch import Tile, same_tile
from ..common.targets import ARCHITECTURES

CONSTANTS: Mapping[str, int] = {
    # Rows of a token in a dot tile: the least that a tensor core takes.
    "GROUP_ROWS": 16,
    # Chosen blocks of a token that a list holds; SALA chooses 62.
    "SLOTS": 64,
    # Scores of a token that a program searches at once in decode: those of a context of 128K.
    "COLUMNS": 2048,
    # Programs of prefill's selection that have scratch at a time: two for each of 188 multiprocessors.
    "SELECT_PROGRAMS": 384,
    # Blocks of a context, of 1M tokens, up to which all of them have it: 201 MB. Beyond, fewer programs have as much.
    "SCRATCH_BLOCKS": 16384,
    # Blocks of a token that may reach the lower bound of its choice; in random order 71 do, by bounds about 300.
    "SURVIVOR_SLOTS": 512,
    # k1 keys that a program quantises.
    "QUANTIZED_KEYS": 64,
    # k1 keys that a head has room for the codes of: those of 16M tokens, 277 MB for SALA. No bounds in larger caches.
    "CODED_KEYS": 1 << 20,
    # Tokens of a chunk that are worth the codes of all keys: eight tiles.
    "BOUNDED_TOKENS": 64,
    # Programs per key head in decode. With SALA's two: 128 and 96, for the 84 to 170 multiprocessors of the targets; 48
    # parts of SALA's 96 taken blocks have two each.
    "SELECT_SPLITS": 64,
    "ATTEND_SPLITS": 48,
}

APPEND: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_T": 16, "BLOCK_N": 16}, num_warps=4, num_stages=1))

UNION_TOKENS: Mapping[int, int] = {86: 4, 87: 4, 89: 2, 90: 4, 110: 2, 120: 2, 121: 2}
"""Neighbouring tokens of a gather tile, whose chosen blocks selection lists together."""

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
# Bounds save what products of 16 bits take longer than those of int8, and cost exact scores: 8 tokens x 12 turns of
# 40 KB from the L2 cache. They pay from 900 blocks on for an RTX 5090, 2400 for an RTX A6000 and 2800 for a PRO 6000
# (predicted). On SM90 exp2 binds as much as products, and SM110 is taken to be as SM90: 0 stands for never.
BOUNDED_BLOCKS: Mapping[int, int] = {sm: 0 if sm in (90, 110) else 3072 for sm in ARCHITECTURES}
SELECT: Mapping[int, Tile] = {
    sm: Tile(
        constexprs={
            "BLOCK_T": SELECT_TOKENS,
            "BLOCK_K": 64 if sm == 90 else 128,
            "BLOCK_K2": 64,
            "BLOCK_B": 32,
            "BOUNDED_BLOCKS": BOUNDED_BLOCKS[sm],
            "UNION_T": union,
            **(_WARP_GROUPS if sm == 90 else _THREADS),
        },
        num_warps=8,
        num_stages=3,
    )
    for sm, union in UNION_TOKENS.items()
}

QUANTIZE_KEYS: Mapping[int, Tile] = {
    sm: Tile(constexprs={"BOUNDED_BLOCKS": blocks}, num_warps=4, num_stages=1) for sm, blocks in BOUNDED_BLOCKS.items()
}

# One program in a multiprocessor either way (registers).
_ATTEND = Tile(constexprs={"BLOCK_T": 8, "BLOCK_N": 64}, num_warps=8, num_stages=3)
ATTEND: Mapping[int, Tile] = same_tile(_ATTEND)

# A tile goes to the union kernel if its union has at most so many percent of the blocks that its tokens have chosen,
# each counted by itself. For 64 keys of 128 channels a token's 16 rows take 0.52 MFLOP of tensor cores, the keys and
# values 32 KiB from the L2 cache. One token at a time, that cache binds: 8 to 10 ns on an RTX A6000 (3.2 to 4 TB/s) and
# 3.6 to 5 on an RTX 5090 (6.5 to 9). An entry of a union takes all rows of the tile, at 0.85 of the tensor cores' rate:
# 4 x 3.4 / 0.85 = 16 ns on the A6000 and 2 x 2.5 / 0.85 = 5.9 on the 5090. They pay up to 50 to 63 % and 61 to 85 %.
# On an H200 the cache binds either way. There, unions of an earlier form with more instructions paid up to 78 %.
_UNION_LIMITS: Mapping[int, int] = {86: 55, 87: 55, 89: 62, 90: 85, 110: 62, 120: 62, 121: 62}


def _union(sm: int, keys: int, columns: int, num_warps: int, num_stages: int) -> Tile:
    constexprs = {
        "UNION_T": UNION_TOKENS[sm],
        "UNION_LIMIT": _UNION_LIMITS[sm],
        "BLOCK_N": keys,
        "VALUE_COLUMNS": columns,
    }
    return Tile(constexprs=constexprs, num_warps=num_warps, num_stages=num_stages)


def _one_token(sm: int, keys: int, num_stages: int) -> Tile:
    constexprs = {"UNION_T": UNION_TOKENS[sm], "UNION_LIMIT": _UNION_LIMITS[sm], "BLOCK_N": keys}
    return Tile(constexprs=constexprs, num_warps=1, num_stages=num_stages)


# Two programs in a multiprocessor at least, so that one multiplies while the other takes its maxima. Parts of 32
# channels let `mma` give each warp the rows of one token: their maxima need no exchange, and P stays in registers. A
# warp group has its rows anyway.
GATHER_UNION: Mapping[int, Tile] = {
    86: _union(86, 32, 32, 4, 3),
    87: _union(87, 32, 32, 4, 3),
    89: _union(89, 32, 32, 2, 2),
    90: _union(90, 64, 128, 4, 3),
    110: _union(110, 32, 32, 2, 2),
    120: _union(120, 32, 32, 2, 2),
    121: _union(121, 32, 32, 2, 2),
}
# One warp for the 16 rows of a token: no exchange between warps. While one tile of keys is computed, the next arrives.
# 32 keys a turn leave two programs in a multiprocessor on SM86 to SM120, too few to keep the L2 cache busy.
GATHER: Mapping[int, Tile] = {
    86: _one_token(86, 16, 3),
    87: _one_token(87, 16, 3),
    89: _one_token(89, 16, 3),
    90: _one_token(90, 32, 3),
    110: _one_token(110, 16, 3),
    120: _one_token(120, 16, 3),
    121: _one_token(121, 16, 3),
}

# A part of a context of 128K has 32 blocks, and 33 k2 keys: one turn each. So have the 127 keys of a new k2 key.
DECODE_NORMALISE: Mapping[int, Tile] = same_tile(
    Tile(constexprs={"BLOCK_B": 64, "BLOCK_N": 128}, num_warps=4, num_stages=3)
)
DECODE_SCORE: Mapping[int, Tile] = same_tile(Tile(constexprs={"BLOCK_B": 32}, num_warps=4, num_stages=2))
# A part has two blocks in the middle of a long context. All of it is asked for at once on SM90, three quarters on SM89
# and SM120, where 64 keys a turn spill, and half on SM86, where three stages spill.
DECODE_ATTEND: Mapping[int, Tile] = {
    86: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=2),
    87: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=2),
    89: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=4),
    90: Tile(constexprs={"BLOCK_N": 64}, num_warps=4, num_stages=3),
    110: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=4),
    120: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=4),
    121: Tile(constexprs={"BLOCK_N": 32}, num_warps=4, num_stages=4),
}
DECODE_MERGE: Mapping[int, Tile] = same_tile(
    Tile(constexprs={"BLOCK_D": 32, "PADDED_SPLITS": 64}, num_warps=4, num_stages=1)
)

FLOAT32_HEAD_DIM: Mapping[int, int] = {**dict.fromkeys(ARCHITECTURES, 32), 90: 128}
"""`KernelSet.float32_head_dim`: the tiles above are those of 16-bit types, and take twice the room in float32."""
