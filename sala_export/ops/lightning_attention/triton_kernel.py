"""LightningAttention on the GPU. Equations: README.md; launches: `KERNELS` at the end.

B batch, T tokens, H heads, D head dim; X the activation type, all else fp32.

Prefill and decode write the unnormed output to a workspace `o` [B, T, H D] in fp32, because the output norm spans all
heads and a float16 `o` overflows. A program owns one [D, BLOCK_V] tile of one head's state, so that tile is read and
written in place by nobody else. q and k are kept as two halves [rows, D / 2], which turns RoPE into plain arithmetic
and each product over D into the sum of two.

Shared memory: the operands of the products in fp32, D BLOCK_V for the state and BLOCK_T D for keys; 40 KiB at D = 128.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.launch import KernelSet, Launch, Workspace


@triton.jit
def _decay_slope(head: tl.tensor, num_heads: tl.tensor) -> tl.tensor:
    """s_h; the head keeps exp(-s_h) of its state per token."""
    return tl.exp2(-8.0 * (head + 1) / num_heads)


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
def lightning_prefill_kernel(
    qkvz_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    rope_cos_sin_ptr: tl.tensor,
    state_ptr: tl.tensor,
    o_ptr: tl.tensor,
    T: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """The chunk form over tiles of BLOCK_T tokens, for one value tile of one head; grid (D / BLOCK_V, B H)."""
    batch = (tl.program_id(1) // num_heads).to(tl.int64)
    head = tl.program_id(1) % num_heads
    element_type: tl.constexpr = qkvz_ptr.dtype.element_ty
    # TF32 holds every bfloat16 and float16 mantissa, so only the fp32 operand of a product with the state is rounded.
    precision: tl.constexpr = "ieee" if element_type == tl.float32 else "tf32"
    channels = num_heads * head_dim
    qkvz_ptr += batch * T * 4 * channels + head * head_dim
    rope_cos_sin_ptr += batch * T * head_dim
    o_ptr += batch * T * channels + head * head_dim

    o_t = tl.arange(0, BLOCK_T)
    o_d = tl.arange(0, head_dim // 2)
    o_v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    state_ptr += (batch * num_heads + head) * head_dim * head_dim
    state_1_ptr = state_ptr + o_d[:, None] * head_dim + o_v[None, :]
    state_2_ptr = state_1_ptr + (head_dim // 2) * head_dim
    state_1, state_2 = tl.load(state_1_ptr), tl.load(state_2_ptr)

    slope = _decay_slope(head, num_heads)
    distance = o_t[:, None] - o_t[None, :]
    within = scale * tl.where(distance >= 0, tl.exp(-slope * tl.maximum(distance, 0)), 0.0)
    into = scale * tl.exp(-slope * (o_t + 1))
    for start in range(0, T, BLOCK_T):
        length = tl.minimum(T - start, BLOCK_T)
        o_row = start + o_t
        m_row = o_t < length
        cos_ptr = rope_cos_sin_ptr + o_row[:, None].to(tl.int64) * head_dim + o_d[None, :]
        cos = tl.load(cos_ptr, mask=m_row[:, None], other=0.0)
        sin = tl.load(cos_ptr + head_dim // 2, mask=m_row[:, None], other=0.0)
        q_1, q_2 = _norm_and_rotate(qkvz_ptr, q_norm_ptr, cos, sin, o_row, m_row, 4 * channels, eps, head_dim)
        k_ptr = qkvz_ptr + channels
        k_1, k_2 = _norm_and_rotate(k_ptr, k_norm_ptr, cos, sin, o_row, m_row, 4 * channels, eps, head_dim)
        v_ptr = qkvz_ptr + 2 * channels + o_row[:, None].to(tl.int64) * (4 * channels) + o_v[None, :]
        v = tl.load(v_ptr, mask=m_row[:, None], other=0.0)

        p = tl.dot(q_1, tl.trans(k_1), input_precision="ieee")
        p = tl.dot(q_2, tl.trans(k_2), p, input_precision="ieee")
        o = tl.dot(q_1.to(tl.float32), state_1, input_precision=precision)
        o = tl.dot(q_2.to(tl.float32), state_2, o, input_precision=precision)
        # Scaled before it is rounded: q k^T alone can exceed float16.
        o = tl.dot((p * within).to(element_type), v, into[:, None] * o, input_precision="ieee")
        tl.store(o_ptr + o_row[:, None].to(tl.int64) * channels + o_v[None, :], o, mask=m_row[:, None])

        out_of = tl.where(m_row, tl.exp(-slope * tl.maximum(length - 1 - o_t, 0)), 0.0)
        kept = tl.exp(-slope * length)
        decayed_v = out_of[:, None] * v.to(tl.float32)
        state_1 = tl.dot(tl.trans(k_1).to(tl.float32), decayed_v, kept * state_1, input_precision=precision)
        state_2 = tl.dot(tl.trans(k_2).to(tl.float32), decayed_v, kept * state_2, input_precision=precision)
    tl.store(state_1_ptr, state_1)
    tl.store(state_2_ptr, state_2)


@triton.jit
def lightning_decode_kernel(
    qkvz_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    rope_cos_sin_ptr: tl.tensor,
    state_ptr: tl.tensor,
    o_ptr: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    scale: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_V: tl.constexpr,
) -> None:
    """One token, state read and written once; grid (D / BLOCK_V, B H)."""
    batch = (tl.program_id(1) // num_heads).to(tl.int64)
    head = tl.program_id(1) % num_heads
    channels = num_heads * head_dim
    qkvz_ptr += batch * 4 * channels + head * head_dim

    o_d = tl.arange(0, head_dim // 2)
    o_v = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    state_ptr += (batch * num_heads + head) * head_dim * head_dim
    state_1_ptr = state_ptr + o_d[:, None] * head_dim + o_v[None, :]
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
    o = tl.sum(tl.trans(q_1).to(tl.float32) * state_1, axis=0) + tl.sum(tl.trans(q_2).to(tl.float32) * state_2, axis=0)
    tl.store(o_ptr + batch * channels + head * head_dim + o_v, scale * o)
    tl.store(state_1_ptr, state_1)
    tl.store(state_2_ptr, state_2)


@triton.jit
def lightning_output_kernel(
    qkvz_ptr: tl.tensor,
    o_norm_ptr: tl.tensor,
    o_ptr: tl.tensor,
    y_ptr: tl.tensor,
    num_heads: tl.tensor,
    eps: tl.tensor,
    head_dim: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """y = RMSNorm(o; o_norm) * sigmoid(z) of one token; grid (B T)."""
    row = tl.program_id(0).to(tl.int64)
    channels = num_heads * head_dim
    o_ptr += row * channels
    z_ptr = qkvz_ptr + row * 4 * channels + 3 * channels
    o_c = tl.arange(0, BLOCK_C)
    squares = tl.zeros((BLOCK_C,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        o = tl.load(o_ptr + start + o_c, mask=start + o_c < channels, other=0.0)
        squares += o * o
    inverse = tl.rsqrt(tl.sum(squares, axis=0) / channels + eps)
    for start in range(0, channels, BLOCK_C):
        m_c = start + o_c < channels
        o = tl.load(o_ptr + start + o_c, mask=m_c, other=0.0)
        weight = tl.load(o_norm_ptr + start + o_c, mask=m_c, other=0.0).to(tl.float32)
        gate = tl.sigmoid(tl.load(z_ptr + start + o_c, mask=m_c, other=0.0).to(tl.float32))
        y = o * inverse * weight * gate
        tl.store(y_ptr + row * channels + start + o_c, y.to(y_ptr.dtype.element_ty), mask=m_c)


_BLOCK_V = 32
_OUTPUT = Launch(
    kernel=lightning_output_kernel,
    grid=("B * T", "1", "1"),
    num_warps=4,
    num_stages=1,
    constexprs={"BLOCK_C": 1024},
)

KERNELS = KernelSet(
    workspaces=(Workspace(name="o", dtype="float32", shape=("B", "T", "num_heads * head_dim")),),
    prefill=(
        Launch(
            kernel=lightning_prefill_kernel,
            grid=(f"fdiv(head_dim, {_BLOCK_V})", "B * num_heads", "1"),
            num_warps=8,
            num_stages=2,
            constexprs={"BLOCK_T": 32, "BLOCK_V": _BLOCK_V},
        ),
        _OUTPUT,
    ),
    decode=(
        Launch(
            kernel=lightning_decode_kernel,
            grid=(f"fdiv(head_dim, {_BLOCK_V})", "B * num_heads", "1"),
            num_warps=4,
            num_stages=1,
            constexprs={"BLOCK_V": _BLOCK_V},
        ),
        _OUTPUT,
    ),
    variant_attributes=("head_dim",),
    aot_variants=({"head_dim": 64}, {"head_dim": 128}),
    aot_dtypes=("bfloat16",),
)
