"""Norms and gates of the torch runtime on a GPU, where TensorRT would fuse them itself.

Rows are of X, the activation type, and arithmetic is in fp32. Each kernel reads its operands once and writes its result
over one of them. The width of a row is known when a kernel is compiled. If it is a multiple of 16 bytes, rows are
loaded and stored 16 bytes at a time.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

_WARP = 32
_MOST_WARPS = 8
_THREAD_ELEMENTS = 8
"""Elements of 16 bits that one instruction loads or stores."""


@triton.jit
def add_norm_kernel(
    hidden_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    scale: tl.tensor,
    eps: tl.tensor,
    hidden_size: tl.constexpr,
    ADDS: tl.constexpr,
    BLOCK_H: tl.constexpr,
) -> None:
    """Compute `hidden += scale * delta` if ADDS, then `delta = cast(hidden / rms(hidden)) * weight`.

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


@triton.jit
def gated_product_kernel(gate_up_ptr: tl.tensor, scale: tl.tensor, width: tl.constexpr, BLOCK_I: tl.constexpr) -> None:
    """Compute `gate = scale * silu(gate) * up` of rows [gate, up], `width` each. Grid (T, width / BLOCK_I)."""
    row = tl.program_id(0).to(tl.int64) * 2 * width
    o_i = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    m_i = o_i < width
    gate = tl.load(gate_up_ptr + row + o_i, mask=m_i, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row + width + o_i, mask=m_i, other=0.0).to(tl.float32)
    product = scale * gate * tl.sigmoid(gate) * up
    tl.store(gate_up_ptr + row + o_i, product.to(gate_up_ptr.dtype.element_ty), mask=m_i)


def norm_options(hidden_size: int) -> dict[str, Any]:
    """Options to compile `add_norm_kernel` with for rows of this size, beside ADDS.

    A thread has 8 elements or more, and there are never more threads than elements. Two threads with one element would
    race, because one of them adds to it in place while the other may not have read it yet.
    """
    block = max(_WARP, triton.next_power_of_2(hidden_size))
    warps = min(_MOST_WARPS, max(1, block // (_THREAD_ELEMENTS * _WARP)))
    return {"hidden_size": hidden_size, "BLOCK_H": block, "num_warps": warps}


def gate_options(width: int) -> dict[str, Any]:
    """Options to compile `gated_product_kernel` with for rows [gate, up] of `width` each."""
    return {"width": width, "BLOCK_I": _MOST_WARPS * _WARP * _THREAD_ELEMENTS, "num_warps": _MOST_WARPS}
