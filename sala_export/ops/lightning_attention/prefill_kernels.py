"""LightningAttention over many tokens: what segments hand on, then all segments side by side. README.md, "On a GPU".

B batch, T tokens, H heads, D head dim; X the activation type, all else fp32. q and k are kept as two halves
[rows, D / 2], which turns RoPE into plain arithmetic. The state is kept as its transpose, two halves [D value, D / 2
key]: a warp then owns 16 value channels of it, and rounds them to fp16 as the first operand of a product without
shared memory.

Shared memory of prefill at D = 128: the operands of the products and the tiles that are on their way, 73 KiB with tiles
of 32 tokens, 225 KiB with 64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from . import tiles
from .kernel_math import decay_slope, normed_and_rotated, packed, query_unit, segment_length, state_times_query

_REACH = tl.constexpr(tiles.REACH)


@triton.jit
def _tokens_in_reach(slope: tl.tensor, length: tl.tensor, SEGMENT_UNIT: tl.constexpr) -> tl.tensor:
    """How many tokens before a border, in whole units, count in what is handed on there."""
    units = (1.0 / slope * _REACH).to(tl.int32) // SEGMENT_UNIT + 1
    return tl.minimum(length, units * SEGMENT_UNIT)


@triton.jit
def _part_length(
    reach: tl.tensor, PARTS: tl.constexpr, LEAST_PART: tl.constexpr, SEGMENT_UNIT: tl.constexpr
) -> tl.tensor:
    """Tokens of each part of a segment but the earliest, which is the shorter one."""
    return tl.cdiv(tl.maximum(tl.cdiv(reach, PARTS), LEAST_PART), SEGMENT_UNIT) * SEGMENT_UNIT


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
    WANTED_PROGRAMS: tl.constexpr,
    SEGMENT_UNIT: tl.constexpr,
    PARTS: tl.constexpr,
    LEAST_PART: tl.constexpr,
) -> None:
    """What is carried into segments: slot 0 the state before the chunk, then PARTS slots for each segment but the last.

    Part 0 of a segment is its end. A slot holds what its part adds to the state at the end of the segment. Parts that
    lie beyond the reach of a head are neither computed nor written. Grid (PARTS, segments, B H); programs of
    segment 0 copy the state, those of segment i sum over segment i - 1. The heads with the longest reach start first.
    """
    # The grid counts segments by it.
    tl.static_assert(WANTED_PROGRAMS >= 1)
    element_type: tl.constexpr = qkvz_ptr.dtype.element_ty
    rows: tl.constexpr = BLOCK_T if element_type != tl.float32 else BLOCK_T // 2
    part = tl.program_id(0)
    segment = tl.program_id(1)
    batch_head = tl.num_programs(2) - 1 - tl.program_id(2)
    batch = (batch_head // num_heads).to(tl.int64)
    head = batch_head % num_heads
    channels = num_heads * head_dim
    qkvz_ptr += batch * T * 4 * channels + head * head_dim
    rope_cos_sin_ptr += batch * T * head_dim

    o_t = tl.arange(0, rows)
    m_t = o_t < rows
    o_d = tl.arange(0, head_dim // 2)
    o_v = tl.arange(0, head_dim)
    o_state = o_d[None, :] * head_dim + o_v[:, None]
    second: tl.constexpr = (head_dim // 2) * head_dim
    state_ptr += batch_head.to(tl.int64) * head_dim * head_dim + o_state
    slots = 1 + PARTS * (tl.num_programs(1) - 1)
    slot = tl.maximum(1 + PARTS * (segment - 1) + part, 0)
    slot_ptr = carry_ptr + (batch_head.to(tl.int64) * slots + slot) * head_dim * head_dim + o_state

    slope = decay_slope(head, num_heads)
    length = segment_length(T, tl.num_programs(1), SEGMENT_UNIT)
    reach = _tokens_in_reach(slope, length, SEGMENT_UNIT)
    part_length = _part_length(reach, PARTS, LEAST_PART, SEGMENT_UNIT)
    border = segment * length
    end = border - part * part_length
    start = tl.maximum(end - part_length, border - reach)
    if segment == 0:
        if part == 0:
            tl.store(slot_ptr, tl.load(state_ptr))
            tl.store(slot_ptr + second, tl.load(state_ptr + second))
    elif start < end:
        out_of = tl.exp(-slope * (rows - 1 - o_t))[:, None]
        kept = tl.exp(-slope * rows)
        k_norm_1, k_norm_2 = tl.load(k_norm_ptr + o_d), tl.load(k_norm_ptr + head_dim // 2 + o_d)
        state_1 = tl.zeros((head_dim, head_dim // 2), tl.float32)
        state_2 = tl.zeros((head_dim, head_dim // 2), tl.float32)
        for tile in range(start, end, rows):
            first_row = tl.cast(tile, tl.int64)
            cos_ptr = rope_cos_sin_ptr + first_row * head_dim + (o_t[:, None] * head_dim + o_d[None, :])
            cos, sin = tl.load(cos_ptr), tl.load(cos_ptr + head_dim // 2)
            row_ptr = qkvz_ptr + first_row * (4 * channels) + o_t[:, None] * (4 * channels)
            k_1 = tl.load(row_ptr + channels + o_d[None, :])
            k_2 = tl.load(row_ptr + channels + head_dim // 2 + o_d[None, :])
            v = tl.load(row_ptr + 2 * channels + o_v[None, :])
            k_1, k_2 = normed_and_rotated(k_1, k_2, k_norm_1, k_norm_2, cos, sin, m_t, eps, 1.0, head_dim)
            decayed_v = tl.trans((out_of * v.to(tl.float32)).to(element_type))
            state_1 = tl.dot(decayed_v, k_1, kept * state_1, input_precision="ieee")
            state_2 = tl.dot(decayed_v, k_2, kept * state_2, input_precision="ieee")
        at_border = tl.exp(-slope * (border - end))
        tl.store(slot_ptr, at_border * state_1)
        tl.store(slot_ptr + second, at_border * state_2)


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
    ROPE_AHEAD: tl.constexpr,
    WANTED_PROGRAMS: tl.constexpr,
    VALUE_TILES: tl.constexpr,
    SEGMENT_UNIT: tl.constexpr,
    PARTS: tl.constexpr,
    LEAST_PART: tl.constexpr,
) -> None:
    """The chunk form over tiles of BLOCK_T tokens, half as many in float32, for one segment of one head.

    Grid (segments, 1, B H). `squares` holds VALUE_TILES sums per head. With ROPE_AHEAD the angles of the next tile wait
    in registers, else in shared memory with q, k and v.
    """
    # The grid counts segments by it.
    tl.static_assert(WANTED_PROGRAMS >= 1)
    element_type: tl.constexpr = qkvz_ptr.dtype.element_ty
    tile_rows: tl.constexpr = BLOCK_T if element_type != tl.float32 else BLOCK_T // 2
    segment = tl.program_id(0)
    segments = tl.num_programs(0)
    batch_head = tl.program_id(2).to(tl.int64)
    batch = batch_head // num_heads
    head = tl.program_id(2) % num_heads
    channels = num_heads * head_dim
    qkvz_ptr += batch * T * 4 * channels + head * head_dim
    rope_cos_sin_ptr += batch * T * head_dim
    o_ptr += batch * T * channels + head * head_dim
    squares_ptr += (batch * T * num_heads + head) * VALUE_TILES

    o_t = tl.arange(0, tile_rows)
    o_d = tl.arange(0, head_dim // 2)
    o_v = tl.arange(0, head_dim)
    o_g = tl.arange(0, VALUE_TILES)
    o_state = o_d[None, :] * head_dim + o_v[:, None]
    second: tl.constexpr = (head_dim // 2) * head_dim
    state_ptr += batch_head * head_dim * head_dim + o_state
    slope = decay_slope(head, num_heads)
    length = segment_length(T, segments, SEGMENT_UNIT)
    begin = segment * length
    end = tl.minimum(T, begin + length)

    if segments == 1:
        state_1, state_2 = tl.load(state_ptr), tl.load(state_ptr + second)
    else:
        slot_ptr = carry_ptr + batch_head * (1 + PARTS * (segments - 1)) * head_dim * head_dim + o_state
        state_1, state_2 = tl.load(slot_ptr), tl.load(slot_ptr + second)
        slot_ptr += head_dim * head_dim
        reach = _tokens_in_reach(slope, length, SEGMENT_UNIT)
        written = tl.cdiv(reach, _part_length(reach, PARTS, LEAST_PART, SEGMENT_UNIT))
        kept_of_segment = tl.exp(-slope * length)
        for _ in range(segment):
            state_1 *= kept_of_segment
            state_2 *= kept_of_segment
            # The others may hold anything.
            for part in range(written):
                part_ptr = slot_ptr + part * head_dim * head_dim
                state_1 += tl.load(part_ptr)
                state_2 += tl.load(part_ptr + second)
            slot_ptr += PARTS * head_dim * head_dim

    unit_of_q = query_unit(q_norm_ptr, head_dim)
    inverse_of_q = 1.0 / unit_of_q
    # e^{-s (i - j)} as the product of two factors, which takes fewer registers than all of them. s < 1 and tiles of 64
    # rows at most: the factors lie between e^-32 and e^32.
    from_middle = o_t - tile_rows // 2
    to_query = tl.exp(-slope * from_middle)[None, :] * (scale * unit_of_q)
    from_key = tl.exp(slope * from_middle)[:, None]
    causal = o_t[None, :] >= o_t[:, None]
    into = (scale * unit_of_q) * tl.exp(-slope * (o_t + 1))
    o_angle = o_t[:, None] * head_dim + o_d[None, :]
    if ROPE_AHEAD:
        cos_ptr = rope_cos_sin_ptr + begin.to(tl.int64) * head_dim + o_angle
        cos = tl.load(cos_ptr, mask=o_t[:, None] < end - begin, other=0.0)
        sin = tl.load(cos_ptr + head_dim // 2, mask=o_t[:, None] < end - begin, other=0.0)
    # What does not change is computed anew, or read from shared memory: kept in registers, it makes others spill.
    for start in tl.range(begin, end, tile_rows, disable_licm=True):
        rows = tl.minimum(end - start, tile_rows)
        m_row = o_t < rows
        first_row = tl.cast(start, tl.int64)
        if not ROPE_AHEAD:
            cos_ptr = rope_cos_sin_ptr + first_row * head_dim + o_angle
            cos = tl.load(cos_ptr, mask=m_row[:, None], other=0.0)
            sin = tl.load(cos_ptr + head_dim // 2, mask=m_row[:, None], other=0.0)
        row_ptr = qkvz_ptr + first_row * (4 * channels) + o_t[:, None] * (4 * channels)
        q_1 = tl.load(row_ptr + o_d[None, :], mask=m_row[:, None], other=0.0)
        q_2 = tl.load(row_ptr + head_dim // 2 + o_d[None, :], mask=m_row[:, None], other=0.0)
        k_1 = tl.load(row_ptr + channels + o_d[None, :], mask=m_row[:, None], other=0.0)
        k_2 = tl.load(row_ptr + channels + head_dim // 2 + o_d[None, :], mask=m_row[:, None], other=0.0)
        v = tl.load(row_ptr + 2 * channels + o_v[None, :], mask=m_row[:, None], other=0.0)
        q_norm_1, q_norm_2 = tl.load(q_norm_ptr + o_d), tl.load(q_norm_ptr + head_dim // 2 + o_d)
        k_norm_1, k_norm_2 = tl.load(k_norm_ptr + o_d), tl.load(k_norm_ptr + head_dim // 2 + o_d)
        q_1, q_2 = normed_and_rotated(q_1, q_2, q_norm_1, q_norm_2, cos, sin, m_row, eps, inverse_of_q, head_dim)
        k_1, k_2 = normed_and_rotated(k_1, k_2, k_norm_1, k_norm_2, cos, sin, m_row, eps, 1.0, head_dim)
        if ROPE_AHEAD:
            cos_ptr += tile_rows * head_dim
            m_next = o_t[:, None] < end - start - tile_rows
            cos = tl.load(cos_ptr, mask=m_next, other=0.0)
            sin = tl.load(cos_ptr + head_dim // 2, mask=m_next, other=0.0)

        o = into[None, :] * state_times_query(q_1, q_2, state_1, state_2)
        p = tl.dot(k_1, tl.trans(q_1), input_precision="ieee")
        p = tl.dot(k_2, tl.trans(q_2), p, input_precision="ieee")
        # Scaled before it is rounded: k q^T alone can exceed float16.
        p = tl.where(causal, p * from_key * to_query, 0.0).to(element_type)
        o = tl.dot(tl.trans(v), p, o, input_precision="ieee")
        # Groups of no more channels than a warp owns: their sums need no barrier.
        o = tl.reshape(o, (VALUE_TILES, head_dim // VALUE_TILES, tile_rows))
        squares = tl.sum(o * o, axis=1)
        squares_row_ptr = squares_ptr + first_row * (num_heads * VALUE_TILES)
        o_squares = o_t[None, :] * (num_heads * VALUE_TILES) + o_g[:, None]
        tl.store(squares_row_ptr + o_squares, squares, mask=m_row[None, :])
        stored = tl.reshape(packed(o, squares[:, None, :], element_type), (head_dim, tile_rows))
        o_row_ptr = o_ptr + first_row * channels + (o_t[None, :] * channels + o_v[:, None])
        tl.store(o_row_ptr, stored, mask=m_row[None, :])

        out_of = tl.where(m_row, tl.exp(-slope * tl.maximum(rows - 1 - o_t, 0)), 0.0)
        kept = tl.exp(-slope * rows)
        decayed_v = tl.trans((out_of[:, None] * v.to(tl.float32)).to(element_type))
        state_1 = tl.dot(decayed_v, k_1, kept * state_1, input_precision="ieee")
        state_2 = tl.dot(decayed_v, k_2, kept * state_2, input_precision="ieee")
    if segment == segments - 1:
        tl.store(state_ptr, state_1)
        tl.store(state_ptr + second, state_2)
