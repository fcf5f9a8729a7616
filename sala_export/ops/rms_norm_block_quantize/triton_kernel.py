"""RMSNormBlockQuantize on the GPU, and its launch (`KERNELS`). Equations and account: README.md; tiles: tiles.py."""

from __future__ import annotations

import triton
import triton.language as tl

from ..common.any_size import any_size_kernel
from ..common.block_quantization import store_quantized
from ..common.block_scales import BLOCK_SCALED_ARCHITECTURES
from ..common.dependent import wait_for_earlier_launches
from ..common.launch import KernelSet, Launch
from . import tiles


@any_size_kernel
def rms_norm_block_quantize_kernel(
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    codes_ptr: tl.tensor,
    scales_ptr: tl.tensor,
    B: tl.tensor,
    T: tl.tensor,
    columns: tl.tensor,
    eps: tl.tensor,
    BLOCK_C: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One row, its first BLOCK_C numbers kept in registers between sum and norm; grid (B T,)."""
    wait_for_earlier_launches(DEPENDENT)
    # What the compiler sees of a multiple of 128: rows begin at 16 bytes.
    columns = columns // 128 * 128
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * columns
    o_c = tl.arange(0, BLOCK_C)
    x = tl.load(x_ptr + o_c, mask=o_c < columns, other=0.0)
    weight = tl.load(weight_ptr + o_c, mask=o_c < columns, other=0.0)
    squares = x.to(tl.float32) * x.to(tl.float32)
    for start in range(BLOCK_C, columns, BLOCK_C):
        more = tl.load(x_ptr + start + o_c, mask=start + o_c < columns, other=0.0).to(tl.float32)
        squares += more * more
    inverse = tl.rsqrt(tl.sum(squares, axis=0) / columns + eps)
    store_quantized(_normed(x, inverse, weight), codes_ptr, scales_ptr, row, B * T, 0, columns, BLOCK_C)
    for start in range(BLOCK_C, columns, BLOCK_C):
        x = tl.load(x_ptr + start + o_c, mask=start + o_c < columns, other=0.0)
        weight = tl.load(weight_ptr + start + o_c, mask=start + o_c < columns, other=0.0)
        store_quantized(_normed(x, inverse, weight), codes_ptr, scales_ptr, row, B * T, start, columns, BLOCK_C)


@triton.jit
def _normed(x: tl.tensor, inverse: tl.tensor, weight: tl.tensor) -> tl.tensor:
    """A part of a row after its norm: rounded to X before the weight, as the model does it, and after it."""
    normed = (x.to(tl.float32) * inverse).to(x.dtype).to(tl.float32)
    return (normed * weight.to(tl.float32)).to(x.dtype).to(tl.float32)


_LAUNCH = Launch(
    kernel=rms_norm_block_quantize_kernel,
    grid=("B * T", "1", "1"),
    tiles=tiles.NORM,
    dependent=True,
)

KERNELS = KernelSet(
    workspaces=(),
    prefill=(_LAUNCH,),
    decode=(_LAUNCH,),
    variant_attributes=(),
    aot_variants=({},),
    aot_dtypes=("bfloat16",),
    architectures=BLOCK_SCALED_ARCHITECTURES,
)
