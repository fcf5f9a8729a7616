"""Tile sizes of the BlockQuantize kernel: 16 numbers of a thread, whose codes are one store. Not yet timed on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from ..common.block_scales import BLOCK_SCALED_ARCHITECTURES
from ..common.launch import Tile

QUANTIZE: Mapping[int, Tile] = dict.fromkeys(
    BLOCK_SCALED_ARCHITECTURES, Tile(constexprs={"BLOCK_C": 2048}, num_warps=4, num_stages=1)
)
