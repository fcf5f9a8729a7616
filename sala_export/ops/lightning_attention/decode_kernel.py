"""LightningAttention of one token, in one launch. Equations and cut: README.md.

B batch, H heads, D head dim; X the activation type, all else fp32. The output norm spans all heads, so outputs pass
through the workspace `gated`, and their sums of squares through `squares`. Each program counts itself in `finished`
when its outputs are there. The one that is last of its batch row finds all of them, and writes `y`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from ..common.dependent import wait_for_earlier_launches
from .kernel_math import decay_slope


@any_size_kernel
def lightning_decode_kernel(
    qkvz_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    o_norm_ptr: tl.tensor,
    rope_cos_sin_ptr: tl.tensor,
    state_ptr: tl.tensor,
    gated_ptr: tl.tensor,
    squares_ptr: tl.tensor,
    finished_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    VALUE_TILES: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One token, state read and written once; grid (VALUE_TILES, H, B)."""
    head, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row_head = batch * num_heads + head
    width: tl.constexpr = head_dim // VALUE_TILES
    channels = num_heads * head_dim
    q_ptr = qkvz_ptr + batch * 4 * channels + head * head_dim
    k_ptr = q_ptr + channels
    gated_ptr += batch * channels

    o_d = tl.arange(0, head_dim // 2)
    o_v = tl.program_id(0) * width + tl.arange(0, width)
    state_1_ptr = state_ptr + row_head * head_dim * head_dim
    state_1_ptr += o_d[:, None] * head_dim + o_v[None, :]
    state_2_ptr = state_1_ptr + (head_dim // 2) * head_dim
    wait_for_earlier_launches(DEPENDENT)
    # The state first: it is by far the most bytes.
    state_1, state_2 = tl.load(state_1_ptr), tl.load(state_2_ptr)
    # The compiler would put loads off until they are used, and so wait for memory several times.
    tl.debug_barrier()
    q_1, q_2 = _halves(q_ptr, head_dim)
    k_1, k_2 = _halves(k_ptr, head_dim)
    q_weight_1, q_weight_2 = _halves(q_norm_ptr, head_dim)
    k_weight_1, k_weight_2 = _halves(k_norm_ptr, head_dim)
    cos, sin = _halves(rope_cos_sin_ptr + batch * head_dim, head_dim)
    v = tl.load(q_ptr + 2 * channels + o_v)[None, :].to(tl.float32)
    z = tl.load(q_ptr + 3 * channels + o_v).to(tl.float32)
    o_weight = tl.load(o_norm_ptr + head * head_dim + o_v).to(tl.float32)
    tl.debug_barrier()
    q_squares, k_squares = _squares(q_ptr, head_dim), _squares(k_ptr, head_dim)

    element_type: tl.constexpr = qkvz_ptr.dtype.element_ty
    inverse = tl.rsqrt(tl.sum(q_squares, axis=0) / head_dim + eps)
    q_1, q_2 = _rotated(q_1 * inverse * q_weight_1, q_2 * inverse * q_weight_2, cos, sin, element_type)
    inverse = tl.rsqrt(tl.sum(k_squares, axis=0) / head_dim + eps)
    k_1, k_2 = _rotated(k_1 * inverse * k_weight_1, k_2 * inverse * k_weight_2, cos, sin, element_type)
    gate = o_weight * tl.sigmoid(z)
    kept = tl.exp(-decay_slope(head, num_heads))
    state_1 = kept * state_1 + k_1[:, None] * v
    state_2 = kept * state_2 + k_2[:, None] * v
    tl.store(state_1_ptr, state_1)
    tl.store(state_2_ptr, state_2)
    o = tl.sum(q_1[:, None] * state_1 + q_2[:, None] * state_2, axis=0) * scale
    tl.store(squares_ptr + row_head * VALUE_TILES + tl.program_id(0), tl.sum(o * o, axis=0))
    tl.store(gated_ptr + head * head_dim + o_v, o * gate)

    # All warps have stored; the first one's count releases it to the GPU, and acquires what others have released.
    tl.debug_barrier()
    before = tl.atomic_add(finished_ptr + batch, 1, sem="acq_rel", scope="gpu")
    groups = num_heads * VALUE_TILES
    if before == groups - 1:
        tl.store(finished_ptr + batch, 0)
        o_c = tl.arange(0, BLOCK_C)
        for start in range(0, channels, BLOCK_C):
            m_c = start + o_c < channels
            gated = tl.load(gated_ptr + start + o_c, mask=m_c, other=0.0, cache_modifier=".cg")
            inverse = _inverse_norm(squares_ptr + batch * groups, groups, channels, eps, BLOCK_S)
            y = (gated * inverse).to(y_ptr.dtype.element_ty)
            tl.store(y_ptr + batch * channels + start + o_c, y, mask=m_c)


@triton.jit
def _halves(x_ptr: tl.tensor, head_dim: tl.constexpr) -> tl.tensor:
    """The first and the last D / 2 of D numbers."""
    o_d = tl.arange(0, head_dim // 2)
    return tl.load(x_ptr + o_d).to(tl.float32), tl.load(x_ptr + head_dim // 2 + o_d).to(tl.float32)


@triton.jit
def _squares(x_ptr: tl.tensor, head_dim: tl.constexpr) -> tl.tensor:
    """[32], whose sum is that of the squares of D numbers: each warp has all of them, and adds them up by itself."""
    squares = tl.zeros((32,), tl.float32)
    for start in tl.static_range(0, head_dim, 32):
        x = tl.load(x_ptr + start + tl.arange(0, 32)).to(tl.float32)
        squares += x * x
    return squares


@triton.jit
def _rotated(
    first: tl.tensor, second: tl.tensor, cos: tl.tensor, sin: tl.tensor, element_type: tl.constexpr
) -> tl.tensor:
    """Both halves after RoPE, rounded to X."""
    rotated_1 = (first * cos - second * sin).to(element_type)
    rotated_2 = (second * cos + first * sin).to(element_type)
    return rotated_1.to(tl.float32), rotated_2.to(tl.float32)


@triton.jit
def _inverse_norm(
    squares_ptr: tl.tensor, groups: tl.tensor, channels: tl.tensor, eps: tl.tensor, BLOCK_S: tl.constexpr
) -> tl.tensor:
    """1 / sqrt(mean(o^2) + eps) of a row, from its sums of squares, which are always added in one order."""
    o_s = tl.arange(0, BLOCK_S)
    total = tl.zeros((BLOCK_S,), tl.float32)
    for start in range(0, groups, BLOCK_S):
        total += tl.load(squares_ptr + start + o_s, mask=start + o_s < groups, other=0.0, cache_modifier=".cg")
    return tl.rsqrt(tl.sum(total, axis=0) / channels + eps)
