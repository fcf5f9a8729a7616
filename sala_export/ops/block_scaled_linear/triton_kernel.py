"""BlockScaledLinear on the GPU: all launches (`KERNELS`). Equations and cut: README.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import triton.language as tl

from ..common.any_size import any_size_kernel
from ..common.block_scales import BLOCK_SCALED_ARCHITECTURES
from ..common.dependent import wait_for_earlier_launches
from ..common.launch import KernelSet, Launch, Product, Tile
from . import tiles
from .kernel_math import block_scaled_product


@any_size_kernel
def block_scaled_linear_kernel(
    x_ptr: tl.tensor,
    x_scales_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    weight_scales_ptr: tl.tensor,
    y_ptr: tl.tensor,
    B: tl.tensor,
    T: tl.tensor,
    K: tl.tensor,
    N: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One tile of the product; one axis of programs, for every tile."""
    wait_for_earlier_launches(DEPENDENT)
    block_scaled_product(
        x_ptr,
        x_scales_ptr,
        weight_ptr,
        weight_scales_ptr,
        y_ptr,
        y_ptr,
        B * T,
        K,
        N,
        1.0,
        False,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        GROUP_M,
    )


def product_launches(kernel: Callable[..., Any], many_rows: Mapping[int, Tile]) -> KernelSet:
    """The launches of a kernel of block-scaled products; `many_rows` are the tiles of a chunk beyond `FEW_ROWS`."""
    # A turn of the loop is one word of scales.
    main_loop = (Product(m="BLOCK_M", n="BLOCK_N", k="128", operand="mxf8"),)

    def launch(tile: Mapping[int, Tile], grid: str, *, dependent: bool) -> Launch:
        return Launch(kernel=kernel, grid=(grid, "1", "1"), tiles=tile, dependent=dependent, main_loop=main_loop)

    return KernelSet(
        architectures=BLOCK_SCALED_ARCHITECTURES,
        workspaces=(),
        prefill=(
            launch(tiles.FEW, f"{tiles.ONE_IF_FEW} * {tiles.TILES}", dependent=True),
            launch(many_rows, f"{tiles.ONE_IF_MANY} * {tiles.TILES}", dependent=False),
        ),
        decode=(launch(tiles.FEW, tiles.TILES, dependent=True),),
        variant_attributes=(),
        aot_variants=({},),
        aot_dtypes=("bfloat16",),
        constants=tiles.CONSTANTS,
    )


KERNELS = product_launches(block_scaled_linear_kernel, tiles.WIDE)
