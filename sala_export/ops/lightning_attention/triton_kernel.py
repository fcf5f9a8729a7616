"""LightningAttention on the GPU. Equations and the segment form: README.md; tile sizes: tiles.py; launches: `KERNELS`.

B batch, T tokens, H heads, D head dim; X the activation type, all else fp32.

A sequence is cut into segments so that few heads fill a GPU: `lightning_carry_kernel` leaves in `carry` what each
segment hands to those after it, `lightning_prefill_kernel` then computes all segments side by side, each reading q, k
and v once. The output norm spans all heads, so outputs pass through the workspace `o`: for 16-bit X as 16-bit integers
in units of the root of their sum of squares, which goes to `squares` in fp32 and serves the norm too. No magnitude
overflows in that form, and it is finer than X.

q and k are kept as two halves [rows, D / 2], which turns RoPE into plain arithmetic and each product over D into the
sum of two. Shared memory: operands of the products in 16 bits, D D for the state and BLOCK_T D for each of q, k and v,
and the tiles that are on their way; 62 to 79 KiB at D = 128.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.launch import KernelSet, Launch, Product, Workspace
from . import tiles

_LARGEST_INT16 = tl.constexpr(32767.0)
_LEAST_SQUARES = tl.constexpr(1e-37)
"""Sums of squares below it count as this, so that their inverse is finite."""
_LARGEST_SCALED_STATE = tl.constexpr(32768.0)
"""The state is brought below it, in fp16's range, as an operand of a product."""
_LARGEST_PLAIN_WEIGHT = tl.constexpr(1024.0)
"""Up to this norm weight, sqrt(D) times twice it, a bound of q, is in fp16's range for D <= 512."""
_REACH = tl.constexpr(22.2)
"""Decay exponent beyond which a token is left out of what its segment hands on: e^-22.2 is 2^-32."""


@triton.jit
def _decay_slope(head: tl.tensor, num_heads: tl.tensor) -> tl.tensor:
    """s_h; the head keeps exp(-s_h) of its state per token."""
    return tl.exp2(-8.0 * (head + 1) / num_heads)


@triton.jit
def _segment_length(T: tl.tensor, BLOCK_T: tl.constexpr) -> tl.tensor:
    """Tokens of a segment, whole tiles, when the first axis of the grid counts segments."""
    return tl.cdiv(tl.cdiv(T, tl.num_programs(0)), BLOCK_T) * BLOCK_T


@triton.jit
def _power_of_two_below(x: tl.tensor) -> tl.tensor:
    """The largest power of two up to a positive normal x."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def _norm_and_rotate(
    x_ptr: tl.tensor,
    norm_ptr: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    o_row: tl.tensor,
    m_row: tl.tensor,
    row_stride: tl.tensor,
    eps: tl.tensor,
    head_dim: tl.constexpr,
) -> tl.tensor:
    """Both halves [rows, D / 2] of RoPE(RMSNorm(x)), rounded to X; rows outside `m_row` are zero."""
    o_d = tl.arange(0, head_dim // 2)
    x_row_ptr = x_ptr + o_row[:, None].to(tl.int64) * row_stride + o_d[None, :]
    first = tl.load(x_row_ptr, mask=m_row[:, None], other=0.0).to(tl.float32)
    second = tl.load(x_row_ptr + head_dim // 2, mask=m_row[:, None], other=0.0).to(tl.float32)
    mean_square = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / head_dim
    # With eps = 0 a row of zeros would turn into NaN, and masked rows must stay zero.
    inverse = tl.rsqrt(tl.where(m_row, mean_square + eps, 1.0))[:, None]
    first = first * inverse * tl.load(norm_ptr + o_d).to(tl.float32)[None, :]
    second = second * inverse * tl.load(norm_ptr + head_dim // 2 + o_d).to(tl.float32)[None, :]
    element_type = x_ptr.dtype.element_ty
    return (first * cos - second * sin).to(element_type), (second * cos + first * sin).to(element_type)


@triton.jit
def _query_unit(norm_ptr: tl.tensor, head_dim: tl.constexpr) -> tl.tensor:
    """A power of two, 1 for all but huge norm weights, in units of which every normed query is in fp16's range."""
    weight = tl.max(tl.abs(tl.load(norm_ptr + tl.arange(0, head_dim)).to(tl.float32)), axis=0)
    return _power_of_two_below(tl.maximum(weight, _LARGEST_PLAIN_WEIGHT)) / _LARGEST_PLAIN_WEIGHT


@triton.jit
def _query_times_state(
    q_1: tl.tensor, q_2: tl.tensor, state_1: tl.tensor, state_2: tl.tensor, query_unit: tl.tensor
) -> tl.tensor:
    """q S in fp32.

    For 16-bit X one fp16 product: the state in units of a power of two that follows its largest entry, rounded to 11
    bits as TF32 would; q exactly, because 11 bits hold every value of X.
    """
    if q_1.dtype == tl.float32:
        o = tl.dot(q_1, state_1, input_precision="ieee")
        return tl.dot(q_2, state_2, o, input_precision="ieee")
    largest = tl.max(tl.max(tl.maximum(tl.abs(state_1), tl.abs(state_2)), axis=1), axis=0)
    unit = _power_of_two_below(tl.maximum(largest, 1e-30)) * (2.0 / _LARGEST_SCALED_STATE)
    inverse = 1.0 / unit
    if q_1.dtype == tl.float16:
        o = tl.dot(q_1, (state_1 * inverse).to(tl.float16))
        return tl.dot(q_2, (state_2 * inverse).to(tl.float16), o) * unit
    inverse_q = 1.0 / query_unit
    o = tl.dot((q_1.to(tl.float32) * inverse_q).to(tl.float16), (state_1 * inverse).to(tl.float16))
    o = tl.dot((q_2.to(tl.float32) * inverse_q).to(tl.float16), (state_2 * inverse).to(tl.float16), o)
    return o * (unit * query_unit)


@triton.jit
def _packed(o: tl.tensor, squares: tl.tensor, element_type: tl.constexpr) -> tl.tensor:
    """What `o` holds for outputs of sum of squares `squares`: themselves if X is fp32, else the bits of an int16."""
    if element_type == tl.float32:
        return o
    scaled = o * (_LARGEST_INT16 * tl.rsqrt(tl.maximum(squares, _LEAST_SQUARES)))
    return tl.floor(scaled + 0.5).to(tl.int16).to(element_type, bitcast=True)


@triton.jit
def _unpacked(o: tl.tensor, squares: tl.tensor) -> tl.tensor:
    """fp32 outputs from what `_packed` made of them."""
    if o.dtype == tl.float32:
        return o
    return o.to(tl.int16, bitcast=True).to(tl.float32) * (
        tl.sqrt(tl.maximum(squares, _LEAST_SQUARES)) * (1.0 / _LARGEST_INT16)
    )


@triton.jit
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

    o_t = tl.arange(0, BLOCK_T)
    m_t = o_t < BLOCK_T
    o_d = tl.arange(0, head_dim // 2)
    o_v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    o_state = o_d[:, None] * head_dim + o_v[None, :]
    state_ptr += tl.program_id(2).to(tl.int64) * head_dim * head_dim + o_state
    carry_ptr += (tl.program_id(2).to(tl.int64) * tl.num_programs(0) + segment) * head_dim * head_dim + o_state
    second: tl.constexpr = (head_dim // 2) * head_dim

    slope = _decay_slope(head, num_heads)
    length = _segment_length(T, BLOCK_T)
    end = segment * length
    tiles_in_reach = (_REACH / slope).to(tl.int32) // BLOCK_T + 1
    start = end - tl.minimum(length, tiles_in_reach * BLOCK_T)
    out_of = tl.exp(-slope * (BLOCK_T - 1 - o_t))[:, None]
    kept = tl.exp(-slope * BLOCK_T)
    if segment == 0:
        tl.store(carry_ptr, tl.load(state_ptr))
        tl.store(carry_ptr + second, tl.load(state_ptr + second))
    elif end < T:
        state_1 = tl.zeros((head_dim // 2, BLOCK_V), tl.float32)
        state_2 = tl.zeros((head_dim // 2, BLOCK_V), tl.float32)
        for tile in range(start, end, BLOCK_T):
            o_row = (tile + o_t).to(tl.int64)
            cos_ptr = rope_cos_sin_ptr + o_row[:, None] * head_dim + o_d[None, :]
            cos, sin = tl.load(cos_ptr), tl.load(cos_ptr + head_dim // 2)
            k_1, k_2 = _norm_and_rotate(k_ptr, k_norm_ptr, cos, sin, o_row, m_t, 4 * channels, eps, head_dim)
            v = tl.load(k_ptr + channels + o_row[:, None] * (4 * channels) + o_v[None, :])
            decayed_v = (out_of * v.to(tl.float32)).to(element_type)
            state_1 = tl.dot(tl.trans(k_1), decayed_v, kept * state_1, input_precision="ieee")
            state_2 = tl.dot(tl.trans(k_2), decayed_v, kept * state_2, input_precision="ieee")
        tl.store(carry_ptr, state_1)
        tl.store(carry_ptr + second, state_2)


@triton.jit
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
    slope = _decay_slope(head, num_heads)
    length = _segment_length(T, BLOCK_T)
    end = tl.minimum(T, (segment + 1) * length)

    if tl.num_programs(0) == 1:
        state_1, state_2 = tl.load(state_ptr), tl.load(state_ptr + second)
    else:
        carry_ptr += tl.program_id(2).to(tl.int64) * tl.num_programs(0) * head_dim * head_dim + o_state
        state_1, state_2 = tl.load(carry_ptr), tl.load(carry_ptr + second)
        kept = tl.exp(-slope * length)
        for _ in range(segment):
            carry_ptr += head_dim * head_dim
            state_1 = kept * state_1 + tl.load(carry_ptr)
            state_2 = kept * state_2 + tl.load(carry_ptr + second)

    distance = o_t[:, None] - o_t[None, :]
    within = scale * tl.where(distance >= 0, tl.exp(-slope * tl.maximum(distance, 0)), 0.0)
    into = scale * tl.exp(-slope * (o_t + 1))
    query_unit = _query_unit(q_norm_ptr, head_dim)
    for start in range(segment * length, end, BLOCK_T):
        rows = tl.minimum(end - start, BLOCK_T)
        o_row = (start + o_t).to(tl.int64)
        m_row = o_t < rows
        cos_ptr = rope_cos_sin_ptr + o_row[:, None] * head_dim + o_d[None, :]
        cos = tl.load(cos_ptr, mask=m_row[:, None], other=0.0)
        sin = tl.load(cos_ptr + head_dim // 2, mask=m_row[:, None], other=0.0)
        q_1, q_2 = _norm_and_rotate(qkvz_ptr, q_norm_ptr, cos, sin, o_row, m_row, 4 * channels, eps, head_dim)
        k_ptr = qkvz_ptr + channels
        k_1, k_2 = _norm_and_rotate(k_ptr, k_norm_ptr, cos, sin, o_row, m_row, 4 * channels, eps, head_dim)
        v_ptr = qkvz_ptr + 2 * channels + o_row[:, None] * (4 * channels) + o_v[None, :]
        v = tl.load(v_ptr, mask=m_row[:, None], other=0.0)

        o = into[:, None] * _query_times_state(q_1, q_2, state_1, state_2, query_unit)
        p = tl.dot(q_1, tl.trans(k_1), input_precision="ieee")
        p = tl.dot(q_2, tl.trans(k_2), p, input_precision="ieee")
        # Scaled before it is rounded: q k^T alone can exceed float16.
        o = tl.dot((p * within).to(element_type), v, o, input_precision="ieee")
        squares = tl.sum(o * o, axis=1)
        tl.store(squares_ptr + o_row * num_heads, squares, mask=m_row)
        packed = _packed(o, squares[:, None], element_type)
        tl.store(o_ptr + o_row[:, None] * channels + o_v[None, :], packed, mask=m_row[:, None])

        out_of = tl.where(m_row, tl.exp(-slope * tl.maximum(rows - 1 - o_t, 0)), 0.0)
        kept = tl.exp(-slope * rows)
        decayed_v = (out_of[:, None] * v.to(tl.float32)).to(element_type)
        state_1 = tl.dot(tl.trans(k_1), decayed_v, kept * state_1, input_precision="ieee")
        state_2 = tl.dot(tl.trans(k_2), decayed_v, kept * state_2, input_precision="ieee")
    if (segment * length < T) & (end == T):
        tl.store(state_ptr, state_1)
        tl.store(state_ptr + second, state_2)


@triton.jit
def lightning_decode_kernel(
    qkvz_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    rope_cos_sin_ptr: tl.tensor,
    state_ptr: tl.tensor,
    o_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    VALUE_TILES: tl.constexpr,
) -> None:
    """One token, state read and written once; grid (VALUE_TILES, 1, B H)."""
    batch = (tl.program_id(2) // num_heads).to(tl.int64)
    head = tl.program_id(2) % num_heads
    width: tl.constexpr = head_dim // VALUE_TILES
    channels = num_heads * head_dim
    qkvz_ptr += batch * 4 * channels + head * head_dim

    o_d = tl.arange(0, head_dim // 2)
    o_v = tl.program_id(0) * width + tl.arange(0, width)
    state_1_ptr = state_ptr + tl.program_id(2).to(tl.int64) * head_dim * head_dim
    state_1_ptr += o_d[:, None] * head_dim + o_v[None, :]
    state_2_ptr = state_1_ptr + (head_dim // 2) * head_dim

    o_row = tl.arange(0, 1)
    m_row = o_row < 1
    cos_ptr = rope_cos_sin_ptr + batch * head_dim + o_d[None, :]
    cos, sin = tl.load(cos_ptr), tl.load(cos_ptr + head_dim // 2)
    q_1, q_2 = _norm_and_rotate(qkvz_ptr, q_norm_ptr, cos, sin, o_row, m_row, 0, eps, head_dim)
    k_1, k_2 = _norm_and_rotate(qkvz_ptr + channels, k_norm_ptr, cos, sin, o_row, m_row, 0, eps, head_dim)
    v = tl.load(qkvz_ptr + 2 * channels + o_v)[None, :].to(tl.float32)

    kept = tl.exp(-_decay_slope(head, num_heads))
    state_1 = kept * tl.load(state_1_ptr) + tl.trans(k_1).to(tl.float32) * v
    state_2 = kept * tl.load(state_2_ptr) + tl.trans(k_2).to(tl.float32) * v
    tl.store(state_1_ptr, state_1)
    tl.store(state_2_ptr, state_2)
    o = tl.sum(tl.trans(q_1).to(tl.float32) * state_1, axis=0) + tl.sum(tl.trans(q_2).to(tl.float32) * state_2, axis=0)
    o *= scale
    squares = tl.sum(o * o, axis=0)
    tl.store(squares_ptr + tl.program_id(2) * VALUE_TILES + tl.program_id(0), squares)
    tl.store(o_ptr + batch * channels + head * head_dim + o_v, _packed(o, squares, qkvz_ptr.dtype.element_ty))


@triton.jit
def lightning_output_kernel(
    qkvz_ptr: tl.tensor,
    o_norm_ptr: tl.tensor,
    o_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    head_dim: tl.constexpr,
    VALUE_TILES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
) -> None:
    """y = RMSNorm(o; o_norm) * sigmoid(z) of BLOCK_C channels of one token; grid (B T, H D / BLOCK_C).

    `squares` holds VALUE_TILES sums per head; BLOCK_S of them are added at a time.
    """
    row = tl.program_id(0).to(tl.int64)
    width: tl.constexpr = head_dim // VALUE_TILES
    channels = num_heads * head_dim
    groups = num_heads * VALUE_TILES
    squares_ptr += row * groups
    o_s = tl.arange(0, BLOCK_S)
    total = tl.zeros((BLOCK_S,), tl.float32)
    for start in range(0, groups, BLOCK_S):
        total += tl.load(squares_ptr + start + o_s, mask=start + o_s < groups, other=0.0)
    inverse = tl.rsqrt(tl.sum(total, axis=0) / channels + eps)

    o_g = tl.program_id(1) * (BLOCK_C // width) + tl.arange(0, BLOCK_C // width)
    o_c = o_g[:, None] * width + tl.arange(0, width)[None, :]
    m_g = o_g < groups
    m_c = m_g[:, None]
    squares = tl.load(squares_ptr + o_g, mask=m_g, other=0.0)[:, None]
    o = _unpacked(tl.load(o_ptr + row * channels + o_c, mask=m_c, other=0.0), squares)
    z = tl.load(qkvz_ptr + row * 4 * channels + 3 * channels + o_c, mask=m_c, other=0.0).to(tl.float32)
    weight = tl.load(o_norm_ptr + o_c, mask=m_c, other=0.0).to(tl.float32)
    y = o * inverse * weight * tl.sigmoid(z)
    tl.store(y_ptr + row * channels + o_c, y.to(y_ptr.dtype.element_ty), mask=m_c)


_SEGMENTS = "min(cdiv(WANTED_PROGRAMS, B * num_heads), cdiv(T, LEAST_SEGMENT))"
_STATE_UPDATE = Product(m="fdiv(head_dim, 2)", n="head_dim", k="BLOCK_T")
_QUERY_KEY = Product(m="BLOCK_T", n="BLOCK_T", k="fdiv(head_dim, 2)")
_QUERY_STATE = Product(m="BLOCK_T", n="head_dim", k="fdiv(head_dim, 2)")
_OUTPUT_GRID = ("B * T", "cdiv(num_heads * head_dim, BLOCK_C)", "1")

KERNELS = KernelSet(
    workspaces=(
        Workspace(name="carry", dtype="float32", shape=(f"B * num_heads * {_SEGMENTS}", "head_dim", "head_dim")),
        Workspace(name="o", dtype="X", shape=("B", "T", "num_heads * head_dim")),
        Workspace(name="squares", dtype="float32", shape=("B * num_heads * max(T, DECODE_VALUE_TILES)",)),
    ),
    prefill=(
        Launch(
            kernel=lightning_carry_kernel,
            # Nothing is carried between segments where there is one.
            grid=(f"{_SEGMENTS} * min(1, {_SEGMENTS} - 1)", "fdiv(head_dim, BLOCK_V)", "B * num_heads"),
            tiles=tiles.CARRY,
            main_loop=(Product(m="fdiv(head_dim, 2)", n="BLOCK_V", k="BLOCK_T"),) * 2,
        ),
        Launch(
            kernel=lightning_prefill_kernel,
            grid=(_SEGMENTS, "1", "B * num_heads"),
            tiles=tiles.PREFILL,
            main_loop=(
                *(_QUERY_STATE,) * 2,
                *(_QUERY_KEY,) * 2,
                Product(m="BLOCK_T", n="head_dim", k="BLOCK_T"),
                *(_STATE_UPDATE,) * 2,
            ),
        ),
        Launch(kernel=lightning_output_kernel, grid=_OUTPUT_GRID, tiles=tiles.PREFILL_OUTPUT),
    ),
    decode=(
        Launch(kernel=lightning_decode_kernel, grid=("VALUE_TILES", "1", "B * num_heads"), tiles=tiles.DECODE),
        Launch(kernel=lightning_output_kernel, grid=_OUTPUT_GRID, tiles=tiles.DECODE_OUTPUT),
    ),
    variant_attributes=("head_dim",),
    aot_variants=({"head_dim": 64}, {"head_dim": 128}),
    aot_dtypes=("bfloat16", "float16"),
    constants={
        "WANTED_PROGRAMS": tiles.WANTED_PROGRAMS,
        "LEAST_SEGMENT": tiles.LEAST_SEGMENT,
        "DECODE_VALUE_TILES": tiles.DECODE_VALUE_TILES,
    },
)
