"""LightningAttention over many tokens: what segments hand on, then all segments side by side. README.md, "On a GPU".

B batch, T tokens, H heads, D head dim; X the activation type, all else fp32. q and k are kept as two halves
[rows, D / 2], which turns RoPE into plain arithmetic and each product over D into the sum of two.

Shared memory: the operands of the products in 16 bits, D D for the state and BLOCK_T D for each of q, k and v, and the
tiles that are on their way: 61 KiB at D = 128 with two stages, 117 KiB with three.
"""

from __future__ import annotations

import triton.language as tl

from ..common.any_size import any_size_kernel
from . import tiles
from .kernel_math import decay_slope, norm_and_rotate, packed, query_times_state, query_unit, segment_length

_REACH = tl.constexpr(tiles.REACH)


@any_size_kernel
def lightning_carry_kernel(
    qkvz_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    rope_cos_sin_ptr: tl.tensor,
    state_ptr: tl.tensor,
    carry_ptr: tl.tensor,
    T: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """What is carried into segments: slot 0 the state before the chunk, slot i what segment i - 1 adds to it.

    Grid (segments, D / BLOCK_V, B H). Tokens whose weight at the end of their segment is below 2^-32, a 256th of an
    fp32 rounding, are not read.
    """
    segment = tl.program_id(0)
    batch = (tl.program_id(2) // num_heads).to(tl.int64)
    head = tl.program_id(2) % num_heads
    element_type: tl.constexpr = qkvz_ptr.dtype.element_ty
    channels = num_heads * head_dim
    k_ptr = qkvz_ptr + batch * T * 4 * channels + channels + head * head_dim
    rope_cos_sin_ptr += batch * T * head_dim

    width: tl.constexpr = min(BLOCK_V, head_dim)
    o_t = tl.arange(0, BLOCK_T)
    m_t = o_t < BLOCK_T
    o_d = tl.arange(0, head_dim // 2)
    o_v = tl.program_id(1) * width + tl.arange(0, width)
    o_state = o_d[:, None] * head_dim + o_v[None, :]
    state_ptr += tl.program_id(2).to(tl.int64) * head_dim * head_dim + o_state
    carry_ptr += (tl.program_id(2).to(tl.int64) * tl.num_programs(0) + segment) * head_dim * head_dim + o_state
    second: tl.constexpr = (head_dim // 2) * head_dim

    slope = decay_slope(head, num_heads)
    length = segment_length(T, BLOCK_T)
    end = segment * length
    tiles_in_reach = (1.0 / slope * _REACH).to(tl.int32) // BLOCK_T + 1
    start = end - tl.minimum(length, tiles_in_reach * BLOCK_T)
    out_of = tl.exp(-slope * (BLOCK_T - 1 - o_t))[:, None]
    kept = tl.exp(-slope * BLOCK_T)
    if segment == 0:
        tl.store(carry_ptr, tl.load(state_ptr))
        tl.store(carry_ptr + second, tl.load(state_ptr + second))
    else:
        state_1 = tl.zeros((head_dim // 2, width), tl.float32)
        state_2 = tl.zeros((head_dim // 2, width), tl.float32)
        for tile in range(start, end, BLOCK_T):
            o_row = (tile + o_t).to(tl.int64)
            cos_ptr = rope_cos_sin_ptr + o_row[:, None] * head_dim + o_d[None, :]
            cos, sin = tl.load(cos_ptr), tl.load(cos_ptr + head_dim // 2)
            k_1, k_2 = norm_and_rotate(k_ptr, k_norm_ptr, cos, sin, o_row, m_t, 4 * channels, eps, head_dim)
            v = tl.load(k_ptr + channels + o_row[:, None] * (4 * channels) + o_v[None, :])
            decayed_v = (out_of * v.to(tl.float32)).to(element_type)
            state_1 = tl.dot(tl.trans(k_1), decayed_v, kept * state_1, input_precision="ieee")
            state_2 = tl.dot(tl.trans(k_2), decayed_v, kept * state_2, input_precision="ieee")
        tl.store(carry_ptr, state_1)
        tl.store(carry_ptr + second, state_2)


@any_size_kernel
def lightning_prefill_kernel(
    qkvz_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    rope_cos_sin_ptr: tl.tensor,
    state_ptr: tl.tensor,
    carry_ptr: tl.tensor,
    o_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    T: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
) -> None:
    """The chunk form over tiles of BLOCK_T tokens, for one segment of one head; grid (segments, 1, B H)."""
    segment = tl.program_id(0)
    batch = (tl.program_id(2) // num_heads).to(tl.int64)
    head = tl.program_id(2) % num_heads
    element_type: tl.constexpr = qkvz_ptr.dtype.element_ty
    channels = num_heads * head_dim
    qkvz_ptr += batch * T * 4 * channels + head * head_dim
    rope_cos_sin_ptr += batch * T * head_dim
    o_ptr += batch * T * channels + head * head_dim
    squares_ptr += batch * T * num_heads + head

    o_t = tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, head_dim // 2)
    o_v = tl.arange(0, head_dim)
    o_state = o_d[:, None] * head_dim + o_v[None, :]
    second: tl.constexpr = (head_dim // 2) * head_dim
    state_ptr += tl.program_id(2).to(tl.int64) * head_dim * head_dim + o_state
    slope = decay_slope(head, num_heads)
    length = segment_length(T, BLOCK_T)
    end = tl.minimum(T, (segment + 1) * length)

    if tl.num_programs(0) == 1:
        state_1, state_2 = tl.load(state_ptr), tl.load(state_ptr + second)
    else:
        slot_ptr = carry_ptr + tl.program_id(2).to(tl.int64) * tl.num_programs(0) * head_dim * head_dim + o_state
        state_1, state_2 = tl.load(slot_ptr), tl.load(slot_ptr + second)
        kept_of_segment = tl.exp(-slope * length)
        for _ in range(segment):
            slot_ptr += head_dim * head_dim
            state_1 = kept_of_segment * state_1 + tl.load(slot_ptr)
            state_2 = kept_of_segment * state_2 + tl.load(slot_ptr + second)

    distance = o_t[:, None] - o_t[None, :]
    within = scale * tl.where(distance >= 0, tl.exp(-slope * tl.maximum(distance, 0)), 0.0)
    into = scale * tl.exp(-slope * (o_t + 1))
    unit_of_q = query_unit(q_norm_ptr, head_dim)
    for start in range(segment * length, end, BLOCK_T):
        rows = tl.minimum(end - start, BLOCK_T)
        o_row = (start + o_t).to(tl.int64)
        m_row = o_t < rows
        cos_ptr = rope_cos_sin_ptr + o_row[:, None] * head_dim + o_d[None, :]
        cos = tl.load(cos_ptr, mask=m_row[:, None], other=0.0)
        sin = tl.load(cos_ptr + head_dim // 2, mask=m_row[:, None], other=0.0)
        q_1, q_2 = norm_and_rotate(qkvz_ptr, q_norm_ptr, cos, sin, o_row, m_row, 4 * channels, eps, head_dim)
        k_ptr = qkvz_ptr + channels
        k_1, k_2 = norm_and_rotate(k_ptr, k_norm_ptr, cos, sin, o_row, m_row, 4 * channels, eps, head_dim)
        v_ptr = qkvz_ptr + 2 * channels + o_row[:, None] * (4 * channels) + o_v[None, :]
        v = tl.load(v_ptr, mask=m_row[:, None], other=0.0)

        o = into[:, None] * query_times_state(q_1, q_2, state_1, state_2, unit_of_q)
        p = tl.dot(q_1, tl.trans(k_1), input_precision="ieee")
        p = tl.dot(q_2, tl.trans(k_2), p, input_precision="ieee")
        # Scaled before it is rounded: q k^T alone can exceed float16.
        o = tl.dot((p * within).to(element_type), v, o, input_precision="ieee")
        squares = tl.sum(o * o, axis=1)
        tl.store(squares_ptr + o_row * num_heads, squares, mask=m_row)
        o_rows_ptr = o_ptr + o_row[:, None] * channels + o_v[None, :]
        tl.store(o_rows_ptr, packed(o, squares[:, None], element_type), mask=m_row[:, None])

        out_of = tl.where(m_row, tl.exp(-slope * tl.maximum(rows - 1 - o_t, 0)), 0.0)
        kept = tl.exp(-slope * rows)
        decayed_v = (out_of[:, None] * v.to(tl.float32)).to(element_type)
        state_1 = tl.dot(tl.trans(k_1), decayed_v, kept * state_1, input_precision="ieee")
        state_2 = tl.dot(tl.trans(k_2), decayed_v, kept * state_2, input_precision="ieee")
    if segment == tl.num_programs(0) - 1:
        tl.store(state_ptr, state_1)
        tl.store(state_ptr + second, state_2)
