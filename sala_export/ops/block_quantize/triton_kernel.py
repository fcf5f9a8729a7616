"""BlockQuantize on the GPU, and its launch (`KERNELS`). Equations and account: README.md; tile sizes: tiles.py."""

from __future__ import annotations

import triton.language as tl

from ..common.any_size import any_size_kernel
from ..common.block_quantization import store_quantized
from ..common.block_scales import BLOCK_SCALED_ARCHITECTURES
from ..common.dependent import wait_for_earlier_launches
from ..common.launch import KernelSet, Launch
from . import tiles


@any_size_kernel
def block_quantize_kernel(
    x_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    B: tl.tensor,
    T: tl.tensor,
    columns: tl.tensor,
    gated: tl.constexpr,
    BLOCK_C: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """BLOCK_C numbers of one row; grid (B T, columns / BLOCK_C)."""
    wait_for_earlier_launches(DEPENDENT)
    # What the compiler sees of a multiple of 128: rows begin at 16 bytes.
    columns = columns // 128 * 128
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK_C
    o_c = first + tl.arange(0, BLOCK_C)
    m_c = o_c < columns
    x_ptr += row * columns * (1 + gated)
    x = tl.load(x_ptr + o_c, mask=m_c, other=0.0)
    if gated:
        up = tl.load(x_ptr + columns + o_c, mask=m_c, other=0.0).to(tl.float32)
        gate = x.to(tl.float32)
        x = (gate * tl.sigmoid(gate) * up).to(x_ptr.dtype.element_ty)
    store_quantized(x.to(tl.float32), codes_ptr, scales_ptr, row, B * T, first, columns, BLOCK_C)


_LAUNCH = Launch(
    kernel=block_quantize_kernel,
    grid=("B * T", "cdiv(columns, BLOCK_C)", "1"),
    tiles=tiles.QUANTIZE,
    dependent=True,
)

KERNELS = KernelSet(
    workspaces=(),
    prefill=(_LAUNCH,),
    decode=(_LAUNCH,),
    variant_attributes=("gated",),
    aot_variants=({"gated": 0}, {"gated": 1}),
    aot_dtypes=("bfloat16",),
    architectures=BLOCK_SCALED_ARCHITECTURES,
)
