"""Append and compress: keys and values into the caches, and the means of the windows that the chunk completes.

One token is appended in decode_select_kernel.py.

B batch, T tokens of the chunk, G key heads, D head dim; X the activation type.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from .positions import clamped_past, complete_windows


@triton.jit
def _compress(
    old_ptr: tl.tensor,
    new_ptr: tl.tensor,
    compressed_ptr: tl.tensor,
    past: tl.tensor,
    first: tl.tensor,
    end: tl.tensor,
    size: tl.tensor,
    stride: tl.tensor,
    row_stride: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Write the windows whose last key is one of first .. end - 1: rows before `past` from the cache, others from qkvg.

    Rows of the chunk are not read back from the cache: other programs of the same launch are writing them.
    """
    o_n = tl.arange(0, BLOCK_N)
    o_d = tl.arange(0, head_dim)
    for window in range(complete_windows(first, size, stride), complete_windows(end, size, stride)):
        total = tl.zeros((BLOCK_N, head_dim), tl.float32)
        for start in range(0, size, BLOCK_N):
            row = (window * stride + start + o_n).to(tl.int64)
            m_n = start + o_n < size
            is_old = row < past
            old = tl.load(old_ptr + row[:, None] * head_dim + o_d[None, :], mask=(m_n & is_old)[:, None], other=0.0)
            new_row_ptr = new_ptr + (row - past)[:, None] * row_stride + o_d[None, :]
            new = tl.load(new_row_ptr, mask=(m_n & (row >= past))[:, None], other=0.0)
            total += tl.where(is_old[:, None], old, new).to(tl.float32)
        mean = tl.sum(total, axis=0) / size
        to_row = (window + o_d * 0).to(tl.int64) * head_dim + o_d
        tl.store(compressed_ptr + to_row, mean.to(compressed_ptr.dtype.element_ty))


@any_size_kernel
def infllmv2_append_kernel(
    qkvg_ptr: tl.tensor,
    past_length_ptr: tl.tensor,
    k_cache_ptr: tl.tensor,
    v_cache_ptr: tl.tensor,
    k1_cache_ptr: tl.tensor,
    k2_cache_ptr: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    C1: tl.tensor,
    C2: tl.tensor,
    num_heads: tl.tensor,
    num_kv_heads: tl.tensor,
    kernel_size: tl.tensor,
    kernel_stride: tl.constexpr,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    """Append BLOCK_T keys and values, and write the windows that end in them; grid (T / BLOCK_T, G, B)."""
    group = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    head = batch * num_kv_heads + group
    past = clamped_past(past_length_ptr, batch, T, C)
    first_t = tl.program_id(0) * BLOCK_T
    o_t = first_t + tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, head_dim)
    m_t = (o_t < T)[:, None]
    row_stride = 2 * (num_heads + num_kv_heads) * head_dim
    new_ptr = qkvg_ptr + batch * T * row_stride + (num_heads + group) * head_dim
    from_row = o_t.to(tl.int64)[:, None] * row_stride + o_d[None, :]
    to_row = (head * C + past + o_t)[:, None] * head_dim + o_d[None, :]
    tl.store(k_cache_ptr + to_row, tl.load(new_ptr + from_row, mask=m_t), mask=m_t)
    tl.store(v_cache_ptr + to_row, tl.load(new_ptr + num_kv_heads * head_dim + from_row, mask=m_t), mask=m_t)

    old_ptr = k_cache_ptr + head * C * head_dim
    k1_ptr = k1_cache_ptr + head * C1 * head_dim
    k2_ptr = k2_cache_ptr + head * C2 * head_dim
    first = past + first_t
    end = past + tl.minimum(first_t + BLOCK_T, T)
    _compress(old_ptr, new_ptr, k1_ptr, past, first, end, kernel_size, kernel_stride, row_stride, head_dim, BLOCK_N)
    _compress(
        old_ptr, new_ptr, k2_ptr, past, first, end, 4 * kernel_size, 4 * kernel_stride, row_stride, head_dim, BLOCK_N
    )
