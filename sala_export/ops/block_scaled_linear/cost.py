"""What block-scaled products move and compute, and the least that any do.

Bytes are those of device memory, each distinct byte once. All tiles of a row read the same rows of x, and all tiles of
a column the same rows of the weight: what they ask the L2 cache for in all is `bytes_from_cache`.
"""

from __future__ import annotations

from ..common.block_scales import quantized_bytes
from ..common.cost import KernelCost
from ..common.launch import Tile
from . import tiles

_SM = 120
_OUTPUT_BYTES = 2
"""Of bfloat16."""


def cost(inputs: int, outputs: int, *, batch: int, tokens: int, adds: bool = False) -> KernelCost:
    """The one launch of a call.

    Args: inputs and outputs of the product; `adds`, whether the product is added to the stream.
    """
    rows = batch * tokens
    tile = _tile(batch, tokens, adds=adds).constexprs
    count_m, count_n = -(-rows // tile["BLOCK_M"]), -(-outputs // tile["BLOCK_N"])
    computed = count_m * tile["BLOCK_M"] * count_n * tile["BLOCK_N"] * inputs
    least = floor(inputs, outputs, batch=batch, tokens=tokens, adds=adds)
    return KernelCost(
        kernel="block_scaled_linear_add_kernel" if adds else "block_scaled_linear_kernel",
        bytes_read=least.bytes_read,
        bytes_written=least.bytes_written,
        operations=2 * computed,
        bytes_from_cache=count_m * count_n * (tile["BLOCK_M"] + tile["BLOCK_N"]) * quantized_bytes(inputs),
    )


def floor(inputs: int, outputs: int, *, batch: int, tokens: int, adds: bool = False) -> KernelCost:
    """The least of any implementation: x, the weight and what is added read once, y written once. Args: as `cost`."""
    rows = batch * tokens
    y_bytes = rows * outputs * _OUTPUT_BYTES
    return KernelCost(
        kernel="block_scaled_linear_add" if adds else "block_scaled_linear",
        bytes_read=(rows + outputs) * quantized_bytes(inputs) + (y_bytes if adds else 0),
        bytes_written=y_bytes,
        operations=2 * rows * outputs * inputs,
    )


def programs(outputs: int, *, batch: int, tokens: int, adds: bool = False) -> int:
    """Programs of the launch. Args: as `cost`."""
    tile = _tile(batch, tokens, adds=adds).constexprs
    return -(-batch * tokens // tile["BLOCK_M"]) * -(-outputs // tile["BLOCK_N"])


def _tile(batch: int, tokens: int, *, adds: bool) -> Tile:
    if tokens == 1 or batch * tokens <= tiles.CONSTANTS["FEW_ROWS"]:
        return tiles.FEW[_SM]
    return tiles.NARROW[_SM] if adds else tiles.WIDE[_SM]
