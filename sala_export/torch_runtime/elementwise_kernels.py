"""Norms and gates of the torch runtime on a GPU, where TensorRT would fuse them itself.

Rows of X, the activation type, arithmetic in fp32. Each reads its operands once and
writes its result over one of them.
"""

from __future__ import annotations

import triton.language as tl

from ..ops.common.any_size import any_size_kernel


@any_size_kernel
def add_norm_kernel(
    hidden_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    hidden_size: tl.tensor,
    scale: tl.tensor,
    eps: tl.tensor,
    ADDS: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """`hidden += scale * delta` if ADDS; then `delta = cast(hidden / rms(hidden)) * weight`.

    Grid (T,), BLOCK_H >= hidden_size.
    """
    row = tl.program_id(0).to(tl.int64) * hidden_size
    o_h = tl.arange(0, BLOCK_H)
    m_h = o_h < hidden_size
    element_type: tl.constexpr = hidden_ptr.dtype.element_ty
    hidden = tl.load(hidden_ptr + row + o_h, mask=m_h, other=0.0)
    if ADDS:
        delta = tl.load(delta_ptr + row + o_h, mask=m_h, other=0.0)
        hidden = (hidden.to(tl.float32) + scale * delta.to(tl.float32)).to(element_type)
        tl.store(hidden_ptr + row + o_h, hidden, mask=m_h)
    wide = hidden.to(tl.float32)
    normed = wide * tl.rsqrt(tl.sum(wide * wide, axis=0) / hidden_size + eps)
    weight = tl.load(weight_ptr + o_h, mask=m_h, other=0.0).to(tl.float32)
    # The cast before the weight is the model's.
    y = normed.to(element_type).to(tl.float32) * weight
    tl.store(delta_ptr + row + o_h, y.to(element_type), mask=m_h)


@any_size_kernel
def gated_product_kernel(gate_up_ptr: tl.tensor, width: tl.tensor, scale: tl.tensor, BLOCK_I: tl.constexpr) -> None:
    """`gate = scale * silu(gate) * up` of rows [gate, up], `width` each; grid (T, width / BLOCK_I)."""
    row = tl.program_id(0).to(tl.int64) * 2 * width
    o_i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    m_i = o_i < width
    gate = tl.load(gate_up_ptr + row + o_i, mask=m_i, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row + width + o_i, mask=m_i, other=0.0).to(tl.float32)
    product = scale * gate * tl.sigmoid(gate) * up
    tl.store(gate_up_ptr + row + o_i, product.to(gate_up_ptr.dtype.element_ty), mask=m_i)
