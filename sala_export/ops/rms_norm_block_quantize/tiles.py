"""Tile sizes of the RMSNormBlockQuantize kernel: a row of SALA, 16 numbers of a thread. Not yet timed on a GPU."""

from __future__ import annotations

from collections.abc import Mapping

from ..common.block_scales import BLOCK_SCALED_ARCHITECTURES
from ..common.launch import Tile

NORM: Mapping[int, Tile] = dict.fromkeys(
    BLOCK_SCALED_ARCHITECTURES, Tile(constexprs={"BLOCK_C": 4096}, num_warps=8, num_stages=1)
)
