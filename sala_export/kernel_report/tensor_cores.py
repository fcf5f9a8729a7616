"""Tensor-core instructions of a main loop in closed form: what a compiler must emit for the products that are stated.

Triton gives all warps of a block to one axis of a loop's products: to rows if the first has as many rows as columns, to
columns if it has fewer. A product with fewer tiles along that axis than there are warps is computed by several of them
alike. On SM90, products of 64 rows or more go to groups of four warps: to rows as far as they reach, then to columns.
Groups beyond the rows of a product that feeds another compute all columns alike, in instructions of their share. On
SM110 such products go to `UTCHMMA`, which one thread issues for the block. Those are not counted.

Seen with Triton 3.9.0; `tests/kernel_report/` compares every shipped cubin.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .shipped import MainLoopProduct

_MMA_M, _MMA_N = 16, 8
"""Rows and columns of one instruction of a warp, `HMMA.16816`, `QMMA.SF.16832` or `IMMA.16832`."""
_DEPTHS = {"X": 16, "mxf8": 32, "int8": 32}
"""Their depths, by `Product.operand`."""
MAIN_LOOP, INT8_LOOP = ("X", "mxf8"), ("int8",)
"""The operands of products that share a loop."""
_GROUP_M, _GROUP_N = 64, 256
"""`HGMMA`: rows, and most columns, of one instruction of a warp group; its depth is that of `HMMA`."""
_GROUP_WARPS = 4


def instructions_per_warp(
    main_loop: Sequence[MainLoopProduct], *, warps: int, sm: int, operands: Collection[str] = MAIN_LOOP
) -> int:
    """What each warp issues in one turn of the loop whose products are of such operands; 0 without any.

    `HMMA`, `HGMMA` and `QMMA` of `MAIN_LOOP`, or `IMMA` of `INT8_LOOP`.
    """
    products = [product for product in main_loop if product.operand in operands]
    if not products:
        return 0
    first = products[0]
    rows, columns = (warps, 1) if first.m >= first.n else (1, warps)
    count = 0
    for product in products:
        depth = _tiles(product.k, _DEPTHS[product.operand])
        is_of_group = product.operand == "X" and product.m >= _GROUP_M and warps >= _GROUP_WARPS
        if sm == 110 and is_of_group:
            continue
        if sm == 90 and is_of_group:
            groups = warps // _GROUP_WARPS
            on_rows = min(groups, product.m // _GROUP_M)
            instructions = _tiles(product.n * on_rows, _GROUP_N * groups)
            if product.feeds_product:
                instructions *= groups // on_rows
            count += _tiles(product.m, _GROUP_M * on_rows) * instructions * depth
        else:
            count += _tiles(product.m, _MMA_M * rows) * _tiles(product.n, _MMA_N * columns) * depth
    return count


def _tiles(extent: int, tile: int) -> int:
    return -(-extent // tile)
