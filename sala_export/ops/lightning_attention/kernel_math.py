"""What the LightningAttention kernels share: decay, norm and rotation, products with the state, packed outputs.

D head dim; X the activation type, all else fp32. No early return where X decides: Triton compiles what follows one.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LARGEST_INT16 = tl.constexpr(32767.0)
_LEAST_SQUARES = tl.constexpr(1e-37)
"""Sums of squares below it count as this, so that their inverse is finite."""
_LARGEST_SCALED_STATE = tl.constexpr(32768.0)
"""The state is brought below it, into the range of float16, to be the operand of a product."""
_LEAST_STATE = tl.constexpr(1e-30)
"""A state with no larger entry is scaled as if it had one of this size, so that the scale is finite."""
_LARGEST_PLAIN_WEIGHT = tl.constexpr(1024.0)
"""Up to this norm weight, normed queries are at most 2 sqrt(D) times it: in the range of float16 for D <= 512."""


@triton.jit
def decay_slope(head: tl.tensor, num_heads: tl.tensor) -> tl.tensor:
    """s_h; the head keeps exp(-s_h) of its state per token."""
    return tl.exp2(-8.0 * (head + 1) / num_heads)


@triton.jit
def segment_length(T: tl.tensor, BLOCK_T: tl.constexpr) -> tl.tensor:
    """Tokens of a segment, whole tiles, when the first axis of the grid counts segments."""
    return tl.cdiv(tl.cdiv(T, tl.num_programs(0)), BLOCK_T) * BLOCK_T


@triton.jit
def _power_of_two_below(x: tl.tensor) -> tl.tensor:
    """The largest power of two up to a positive normal x."""
    return (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)


@triton.jit
def norm_and_rotate(
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
    mean_square = tl.sum(first * first + second * second, axis=1) / head_dim
    # With eps = 0 a row of zeros would turn into NaN, and masked rows must stay zero.
    inverse = tl.rsqrt(tl.where(m_row, mean_square + eps, 1.0))[:, None]
    first = first * inverse * tl.load(norm_ptr + o_d).to(tl.float32)[None, :]
    second = second * inverse * tl.load(norm_ptr + head_dim // 2 + o_d).to(tl.float32)[None, :]
    element_type = x_ptr.dtype.element_ty
    return (first * cos - second * sin).to(element_type), (second * cos + first * sin).to(element_type)


@triton.jit
def query_unit(norm_ptr: tl.tensor, head_dim: tl.constexpr) -> tl.tensor:
    """A power of two, 1 for all but huge norm weights, in units of which every normed query is in fp16's range."""
    weight = tl.max(tl.abs(tl.load(norm_ptr + tl.arange(0, head_dim)).to(tl.float32)), axis=0)
    return _power_of_two_below(tl.maximum(weight, _LARGEST_PLAIN_WEIGHT)) / _LARGEST_PLAIN_WEIGHT


@triton.jit
def query_times_state(
    q_1: tl.tensor, q_2: tl.tensor, state_1: tl.tensor, state_2: tl.tensor, query_unit: tl.tensor
) -> tl.tensor:
    """q S in fp32.

    For 16-bit X one fp16 product: the state in units of a power of two that follows its largest entry, rounded to 11
    bits as TF32 would; q exactly, because 11 bits hold every value of X.
    """
    if q_1.dtype == tl.float32:
        o = tl.dot(q_1, state_1, input_precision="ieee")
        o = tl.dot(q_2, state_2, o, input_precision="ieee")
    else:
        largest = tl.max(tl.max(tl.maximum(tl.abs(state_1), tl.abs(state_2)), axis=1), axis=0)
        unit = _power_of_two_below(tl.maximum(largest, _LEAST_STATE)) * (2.0 / _LARGEST_SCALED_STATE)
        inverse = 1.0 / unit
        if q_1.dtype == tl.float16:
            o = tl.dot(q_1, (state_1 * inverse).to(tl.float16))
            o = tl.dot(q_2, (state_2 * inverse).to(tl.float16), o) * unit
        else:
            inverse_q = 1.0 / query_unit
            o = tl.dot((q_1.to(tl.float32) * inverse_q).to(tl.float16), (state_1 * inverse).to(tl.float16))
            o = tl.dot((q_2.to(tl.float32) * inverse_q).to(tl.float16), (state_2 * inverse).to(tl.float16), o)
            o *= unit * query_unit
    return o


@triton.jit
def packed(o: tl.tensor, squares: tl.tensor, element_type: tl.constexpr) -> tl.tensor:
    """What `o` holds for outputs of sum of squares `squares`: themselves if X is fp32, else the bits of an int16."""
    if element_type == tl.float32:
        stored = o
    else:
        scaled = o * (tl.rsqrt(tl.maximum(squares, _LEAST_SQUARES)) * _LARGEST_INT16)
        stored = tl.floor(scaled + 0.5).to(tl.int16).to(element_type, bitcast=True)
    return stored


@triton.jit
def unpacked(o: tl.tensor, squares: tl.tensor) -> tl.tensor:
    """fp32 outputs from what `packed` made of them."""
    if o.dtype != tl.float32:
        unit = tl.sqrt(tl.maximum(squares, _LEAST_SQUARES)) * (1.0 / _LARGEST_INT16)
        o = o.to(tl.int16, bitcast=True).to(tl.float32) * unit
    return o
