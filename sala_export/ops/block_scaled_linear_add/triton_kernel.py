"""BlockScaledLinearAdd on the GPU: all launches (`KERNELS`). Equations and cut: README.md."""

from __future__ import annotations

import triton.language as tl

from ..block_scaled_linear import tiles
from ..block_scaled_linear.kernel_math import block_scaled_product
from ..block_scaled_linear.triton_kernel import product_launches
from ..common.any_size import any_size_kernel
from ..common.dependent import wait_for_earlier_launches


@any_size_kernel
def block_scaled_linear_add_kernel(
    x_ptr: tl.tensor,
    x_scales_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    weight_scales_ptr: tl.tensor,
    stream_ptr: tl.tensor,
    y_ptr: tl.tensor,
    B: tl.tensor,
    T: tl.tensor,
    K: tl.tensor,
    N: tl.tensor,
    factor: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    DEPENDENT: tl.constexpr,
) -> None:
    """One tile of the sum; one axis of programs, for every tile."""
    wait_for_earlier_launches(DEPENDENT)
    block_scaled_product(
        x_ptr,
        x_scales_ptr,
        weight_ptr,
        weight_scales_ptr,
        stream_ptr,
        y_ptr,
        B * T,
        K,
        N,
        factor,
        True,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        GROUP_M,
    )


KERNELS = product_launches(block_scaled_linear_add_kernel, tiles.NARROW)
