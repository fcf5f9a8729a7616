"""Quantising to MXFP8 in kernels, bit for bit as `numerics/block_scales.py` defines it, without a logarithm."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def quantized(values: tl.tensor, WORDS: tl.constexpr) -> tl.tensor:
    """Codes e4m3 [128 WORDS] and scales int32 [WORDS] of numbers fp32 [128 WORDS]."""
    blocks = tl.reshape(values, (WORDS, 4, 32))
    # As integers magnitudes keep their order, and infinities and NaN are above all numbers.
    largest = tl.max(blocks.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=2)
    # 448 is 1.75 * 2^8: the sum carries into the exponent where the mantissa is above 1.75.
    exponents = tl.maximum(((largest + 0x1FFFFF) >> 23) - 8, 0)
    scales = tl.where(largest >= 0x7F800000, 255, exponents)
    # The bits of 2^(127 - scale), a normal number up to a scale of 253.
    inverse = ((254 - tl.minimum(scales, 253)) << 23).to(tl.float32, bitcast=True)
    # The cast saturates: only an infinity is above 448 here.
    codes = (blocks * inverse[:, :, None]).to(tl.float8e4nv)
    words = tl.sum(scales << (8 * tl.arange(0, 4))[None, :], axis=1)
    return tl.reshape(codes, (WORDS * 128,)), words


@triton.jit
def store_quantized(
    values: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    row: tl.tensor,
    rows: tl.tensor,
    first: tl.tensor,
    columns: tl.tensor,
    BLOCK_C: tl.constexpr,
) -> None:
    """Codes [rows, columns] and scales [columns / 128, rows] of BLOCK_C numbers of a row from column `first` on.

    `values` [BLOCK_C] is fp32, `row` int64. `first` and `columns` are multiples of 128 that the compiler sees as such.
    """
    words: tl.constexpr = BLOCK_C // 128
    codes, scales = quantized(values, words)
    o_c = first + tl.arange(0, BLOCK_C)
    tl.store(codes_ptr + row * columns + o_c, codes, mask=o_c < columns)
    o_w = first // 128 + tl.arange(0, words)
    tl.store(scales_ptr + o_w.to(tl.int64) * rows + row, scales, mask=o_w < columns // 128)
