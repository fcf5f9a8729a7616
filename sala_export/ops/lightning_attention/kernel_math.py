"""What the LightningAttention kernels share: decay, norm and rotation, products with the state, packed outputs.

D head dim; X the activation type, all else fp32. No early return where X decides: Triton compiles what follows one.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LARGEST_INT16 = tl.constexpr(32767.0)
_LEAST_SQUARES = tl.constexpr(1e-37)
"""Sums of squares below it count as this, so that their inverse is finite."""
_LAST_BIT_IS_1 = tl.constexpr(1.5 * 2.0**23)
_EXPONENT_BITS = tl.constexpr(0xFF << 23)
_SCALED_EXPONENT = tl.constexpr(14 << 23)
"""The state is brought below 2^15, into the range of float16, to be the operand of a product."""
_INVERSE_EXPONENTS = tl.constexpr(254 << 23)
"""The exponents of a power of two and of its inverse have this sum: that of 1 is 127."""
_LEAST_STATE = tl.constexpr(1e-30)
"""A state with no larger entry is scaled as if it had one of this size, so that the scale is finite."""
_LARGEST_PLAIN_WEIGHT = tl.constexpr(1024.0)
"""Up to this norm weight, normed queries are at most 2 sqrt(D) times it: in the range of float16 for D <= 512."""


@triton.jit
def decay_slope(head: tl.tensor, num_heads: tl.tensor) -> tl.tensor:
    """s_h; the head keeps exp(-s_h) of its state per token."""
    return tl.exp2(-8.0 * (head + 1) / num_heads)


@triton.jit
def segment_length(T: tl.tensor, segments: tl.tensor, SEGMENT_UNIT: tl.constexpr) -> tl.tensor:
    """Tokens of each segment but the last, which is the shorter one, in whole units."""
    return tl.cdiv(tl.cdiv(T, segments), SEGMENT_UNIT) * SEGMENT_UNIT


@triton.jit
def _power_of_two_below(x: tl.tensor) -> tl.tensor:
    """The largest power of two up to a positive normal x."""
    return (x.to(tl.int32, bitcast=True) & _EXPONENT_BITS).to(tl.float32, bitcast=True)


@triton.jit
def normed_and_rotated(
    first: tl.tensor,
    second: tl.tensor,
    weight_1: tl.tensor,
    weight_2: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    m_row: tl.tensor,
    eps: tl.tensor,
    factor: tl.tensor,
    head_dim: tl.constexpr,
) -> tl.tensor:
    """Both halves [rows, D / 2] of factor * RoPE(RMSNorm(x)) from those of x, rounded to X.

    Rows outside `m_row` have to be zero, and stay zero. `weight_1`, `weight_2`: the halves [D / 2] of the norm weight.
    """
    element_type: tl.constexpr = first.dtype
    first = first.to(tl.float32)
    second = second.to(tl.float32)
    mean_square = tl.sum(first * first + second * second, axis=1) / head_dim
    # With eps = 0 a row of zeros would turn into NaN, and masked rows must stay zero.
    inverse = (tl.rsqrt(tl.where(m_row, mean_square + eps, 1.0)) * factor)[:, None]
    first = first * inverse * weight_1.to(tl.float32)[None, :]
    second = second * inverse * weight_2.to(tl.float32)[None, :]
    return (first * cos - second * sin).to(element_type), (second * cos + first * sin).to(element_type)


@triton.jit
def query_unit(norm_ptr: tl.tensor, head_dim: tl.constexpr) -> tl.tensor:
    """A power of two, 1 for all but huge norm weights, in units of which every normed query is in fp16's range."""
    weight = tl.max(tl.abs(tl.load(norm_ptr + tl.arange(0, head_dim)).to(tl.float32)), axis=0)
    return _power_of_two_below(tl.maximum(weight, _LARGEST_PLAIN_WEIGHT)) / _LARGEST_PLAIN_WEIGHT


@triton.jit
def _side_by_side(first: tl.tensor, second: tl.tensor) -> tl.tensor:
    """[rows, 2 n] from two halves [rows, n]; no thread gives an element to another."""
    return tl.reshape(tl.permute(tl.join(first, second), (0, 2, 1)), (first.shape[0], 2 * first.shape[1]))


@triton.jit
def state_times_query(q_1: tl.tensor, q_2: tl.tensor, state_1: tl.tensor, state_2: tl.tensor) -> tl.tensor:
    """S^T q^T [D value, rows] in fp32, of halves [rows, D / 2] of q and [D value, D / 2] of S^T.

    For 16-bit X one fp16 product: each value channel of the state in units of a power of two that follows its largest
    entry, rounded to 11 bits as TF32 would; q exactly, because 11 bits hold every value of X. A channel lies in four
    threads of one warp, so that its largest entry is found without a barrier.
    """
    if q_1.dtype == tl.float32:
        o = tl.dot(state_1, tl.trans(q_1), input_precision="ieee")
        o = tl.dot(state_2, tl.trans(q_2), o, input_precision="ieee")
    else:
        largest = tl.max(tl.maximum(tl.abs(state_1), tl.abs(state_2)), axis=1)
        # The power of two up to `largest`, then the unit in which that is 2^14, by their exponents.
        exponent = tl.maximum(largest, _LEAST_STATE).to(tl.int32, bitcast=True) & _EXPONENT_BITS
        exponent -= _SCALED_EXPONENT
        unit = exponent.to(tl.float32, bitcast=True)[:, None]
        inverse = (-exponent + _INVERSE_EXPONENTS).to(tl.float32, bitcast=True)[:, None]
        state = _side_by_side((state_1 * inverse).to(tl.float16), (state_2 * inverse).to(tl.float16))
        q = _side_by_side(q_1, q_2)
        if q.dtype == tl.bfloat16:
            # By its bits: the compiler would round each element again, at a quarter of the rate.
            q = (q.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True).to(tl.float16)
        o = tl.dot(state, tl.trans(q)) * unit
    return o


@triton.jit
def packed(o: tl.tensor, squares: tl.tensor, element_type: tl.constexpr) -> tl.tensor:
    """What `o` holds for outputs of sum of squares `squares`: themselves if X is fp32, else the bits of an int16."""
    if element_type == tl.float32:
        stored = o
    else:
        scaled = o * (tl.rsqrt(tl.maximum(squares, _LEAST_SQUARES)) * _LARGEST_INT16)
        # Added to a number whose last bit counts 1, it is rounded, and the low bits are its integer.
        stored = (scaled + _LAST_BIT_IS_1).to(tl.int32, bitcast=True).to(tl.int16).to(element_type, bitcast=True)
    return stored


@triton.jit
def unpacked(o: tl.tensor, squares: tl.tensor) -> tl.tensor:
    """fp32 outputs from what `packed` made of them."""
    if o.dtype != tl.float32:
        unit = tl.sqrt(tl.maximum(squares, _LEAST_SQUARES)) * (1.0 / _LARGEST_INT16)
        o = o.to(tl.int16, bitcast=True).to(tl.float32) * unit
    return o
