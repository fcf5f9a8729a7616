"""The product that both block-scaled operators compute. Equations and cut: README.md; tile sizes: tiles.py."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def block_scaled_product(
    x_ptr: tl.tensor,
    x_scales_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    weight_scales_ptr: tl.tensor,
    stream_ptr: tl.tensor,
    y_ptr: tl.tensor,
    rows: tl.tensor,
    K: tl.tensor,
    N: tl.tensor,
    factor: tl.tensor,
    ADDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
) -> None:
    """One tile of y; programs are numbered through all tiles, GROUP_M of them below each other at a time.

    With ADDS y is `stream` plus `factor` times the product, else the product. A turn of the loop is one word of scales,
    in 128 / BLOCK_K products.
    """
    # The rules of the contract, in a form that the compiler understands: so it loads and stores 16 bytes at once.
    words = K // 128
    K, N = words * 128, N // 8 * 8
    tile_m, tile_n = _tile(tl.cdiv(rows, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP_M)
    # An origin may be beyond 2^31, places within a tile are not.
    first_m, first_n = (tile_m * BLOCK_M).to(tl.int64), (tile_n * BLOCK_N).to(tl.int64)
    left_m, left_n = rows - tile_m * BLOCK_M, N - tile_n * BLOCK_N
    o_m, o_n, o_k = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    # Rows beyond the last are read as the last, and not stored: so no load has a mask.
    in_m, in_n = tl.minimum(o_m, left_m - 1), tl.minimum(o_n, left_n - 1)
    x_ptr += first_m * K
    weight_ptr += first_n * K
    x_scales_ptr += first_m
    weight_scales_ptr += first_n
    o_x = in_m[:, None] * K + o_k[None, :]
    o_w = in_n[:, None] * K + o_k[None, :]

    product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(words):
        x_words, weight_words = tl.load(x_scales_ptr + in_m), tl.load(weight_scales_ptr + in_n)
        for part in tl.static_range(128 // BLOCK_K):
            x = tl.load(x_ptr + part * BLOCK_K + o_x)
            weight = tl.load(weight_ptr + part * BLOCK_K + o_w)
            x_scales = _scales(x_words, part, BLOCK_K // 32)
            weight_scales = _scales(weight_words, part, BLOCK_K // 32)
            product = tl.dot_scaled(x, x_scales, "e4m3", weight.T, weight_scales, "e4m3", product)
        x_ptr += 128
        weight_ptr += 128
        x_scales_ptr += rows
        weight_scales_ptr += N

    stream_ptr += first_m * N + first_n
    y_ptr += first_m * N + first_n
    o_y = o_m[:, None] * N + o_n[None, :]
    m_y = (o_m < left_m)[:, None] & (o_n < left_n)[None, :]
    if ADDS:
        product = tl.load(stream_ptr + o_y, mask=m_y, other=0.0).to(tl.float32) + factor * product
    tl.store(y_ptr + o_y, product.to(y_ptr.dtype.element_ty), mask=m_y)


@triton.jit
def _tile(tiles_m: tl.tensor, tiles_n: tl.tensor, GROUP_M: tl.constexpr) -> tl.tensor:
    """Row and column of this program's tile: programs that run together share rows of x and of the weight in L2."""
    program = tl.program_id(0)
    first = program // (GROUP_M * tiles_n) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    within = program % (GROUP_M * tiles_n)
    return first + within % height, within // height


@triton.jit
def _scales(words: tl.tensor, part: tl.constexpr, COUNT: tl.constexpr) -> tl.tensor:
    """COUNT bytes of each word, those of one part of it; [rows, COUNT] uint8."""
    return (words[:, None] >> (8 * (part * COUNT + tl.arange(0, COUNT)))[None, :]).to(tl.uint8)
