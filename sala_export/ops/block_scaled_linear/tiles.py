"""Tile sizes of the block-scaled products. The kernels use an instruction of SM120 and SM121.

Chosen by static gates, not yet timed on a GPU: no spilled register, shared memory within the limit, instructions beside
the products, and the account of bytes in README.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..common.block_scales import BLOCK_SCALED_ARCHITECTURES
from ..common.launch import Tile, same_tile

CONSTANTS: Mapping[str, int] = {
    # Rows of a chunk up to which tiles of a prefill are those of decode. Beyond it the weight is read from L2 so often
    # that tiles of 128 rows are as fast.
    "FEW_ROWS": 64,
}

ONE_IF_MANY = "min(1, fdiv(B * T - 1, FEW_ROWS))"
"""1 if a call has more than `FEW_ROWS` rows, else 0 (`expr.py`)."""
ONE_IF_FEW = f"(1 - {ONE_IF_MANY})"
TILES = "cdiv(B * T, BLOCK_M) * cdiv(N, BLOCK_N)"


# Bound by the bytes of the weight: seven turns of them are on their way, and two blocks share a multiprocessor.
FEW: Mapping[int, Tile] = same_tile(
    Tile(
        constexprs={"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 128, "GROUP_M": 4},
        num_warps=2,
        num_stages=8,
    ),
    BLOCK_SCALED_ARCHITECTURES,
)
# Fewest bytes from L2. The two products of a turn have half a word each, for whole words spill registers. 101,376
# bytes of shared memory: all there is.
WIDE: Mapping[int, Tile] = same_tile(
    Tile(
        constexprs={"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64, "GROUP_M": 16},
        num_warps=8,
        num_stages=3,
    ),
    BLOCK_SCALED_ARCHITECTURES,
)
# Half as many columns: they fill the last wave of 4096 columns better. As much shared memory.
NARROW: Mapping[int, Tile] = same_tile(
    Tile(
        constexprs={"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 128, "GROUP_M": 16},
        num_warps=8,
        num_stages=4,
    ),
    BLOCK_SCALED_ARCHITECTURES,
)
