"""LightningAttention on the GPU: output norm and gate of many tokens, and all launches (`KERNELS`).

Equations: README.md; many tokens: prefill_kernels.py; one token: decode_kernel.py; tile sizes: tiles.py.

B batch, T tokens, H heads, D head dim; X the activation type, all else fp32. The output norm spans all heads, so
outputs pass through the workspace `o`, packed (`kernel_math.packed`), and their sums of squares through `squares`.
"""

from __future__ import annotations

import triton.language as tl

from ..common.any_size import any_size_kernel
from ..common.launch import HEAD_DIMS, KernelSet, Launch, Product, Workspace
from . import tiles
from .decode_kernel import lightning_decode_kernel
from .kernel_math import unpacked
from .prefill_kernels import lightning_carry_kernel, lightning_prefill_kernel


@any_size_kernel
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
    o = unpacked(tl.load(o_ptr + row * channels + o_c, mask=m_c, other=0.0), squares)
    z = tl.load(qkvz_ptr + row * 4 * channels + 3 * channels + o_c, mask=m_c, other=0.0).to(tl.float32)
    weight = tl.load(o_norm_ptr + o_c, mask=m_c, other=0.0).to(tl.float32)
    y = o * inverse * weight * tl.sigmoid(z)
    tl.store(y_ptr + row * channels + o_c, y.to(y_ptr.dtype.element_ty), mask=m_c)


_SEGMENTS = tiles.SEGMENTS
_STATE_UPDATE = Product(m="head_dim", n="fdiv(head_dim, 2)", k="BLOCK_T")
_STATE_QUERY = Product(m="head_dim", n="BLOCK_T", k="head_dim", feeds_product=True)
_KEY_QUERY = Product(m="BLOCK_T", n="BLOCK_T", k="fdiv(head_dim, 2)", feeds_product=True)

KERNELS = KernelSet(
    workspaces=(
        Workspace(name="carry", dtype="float32", shape=(tiles.CARRY_SLOTS, "head_dim", "head_dim")),
        Workspace(name="o", dtype="X", shape=("B", "T", "num_heads * head_dim")),
        Workspace(name="gated", dtype="float32", shape=("B", "num_heads * head_dim")),
        Workspace(
            name="squares", dtype="float32", shape=("B * num_heads * max(PREFILL_VALUE_TILES * T, DECODE_VALUE_TILES)",)
        ),
    ),
    counters=(Workspace(name="finished", dtype="int32", shape=("B",)),),
    prefill=(
        Launch(
            kernel=lightning_carry_kernel,
            # Nothing is carried between segments where there is one.
            grid=(f"PARTS * min(1, {_SEGMENTS} - 1)", _SEGMENTS, "B * num_heads"),
            tiles=tiles.CARRY,
            main_loop=(_STATE_UPDATE,) * 2,
        ),
        Launch(
            kernel=lightning_prefill_kernel,
            grid=(_SEGMENTS, "1", "B * num_heads"),
            tiles=tiles.PREFILL,
            main_loop=(
                _STATE_QUERY,
                *(_KEY_QUERY,) * 2,
                Product(m="head_dim", n="BLOCK_T", k="BLOCK_T"),
                *(_STATE_UPDATE,) * 2,
            ),
        ),
        Launch(
            kernel=lightning_output_kernel,
            grid=("B * T", "cdiv(num_heads * head_dim, BLOCK_C)", "1"),
            tiles=tiles.OUTPUT,
        ),
    ),
    decode=(
        Launch(
            kernel=lightning_decode_kernel,
            grid=("VALUE_TILES", "num_heads", "B"),
            tiles=tiles.DECODE,
            dependent=True,
        ),
    ),
    variant_attributes=("head_dim",),
    aot_variants=({"head_dim": 64}, {"head_dim": 128}),
    aot_dtypes=("bfloat16", "float16"),
    constants=tiles.CONSTANTS,
    float32_head_dim=tiles.FLOAT32_HEAD_DIM,
    rules=HEAD_DIMS,
)
