"""The GPU kernels of every operator, by contract name. Importing this imports Triton."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .block_quantize import schema as block_quantize
from .block_quantize import triton_kernel as block_quantize_kernels
from .block_scaled_linear import schema as block_scaled_linear
from .block_scaled_linear import triton_kernel as block_scaled_linear_kernels
from .block_scaled_linear_add import schema as block_scaled_linear_add
from .block_scaled_linear_add import triton_kernel as block_scaled_linear_add_kernels
from .common.launch import KernelSet
from .infllmv2_attention import schema as infllmv2_attention
from .infllmv2_attention import triton_kernel as infllmv2_attention_kernels
from .lightning_attention import schema as lightning_attention
from .lightning_attention import triton_kernel as lightning_attention_kernels
from .rms_norm_block_quantize import schema as rms_norm_block_quantize
from .rms_norm_block_quantize import triton_kernel as rms_norm_block_quantize_kernels

KERNEL_SETS: Mapping[str, KernelSet] = MappingProxyType(
    {
        lightning_attention.CONTRACT.name: lightning_attention_kernels.KERNELS,
        infllmv2_attention.CONTRACT.name: infllmv2_attention_kernels.KERNELS,
        block_scaled_linear.CONTRACT.name: block_scaled_linear_kernels.KERNELS,
        block_scaled_linear_add.CONTRACT.name: block_scaled_linear_add_kernels.KERNELS,
        block_quantize.CONTRACT.name: block_quantize_kernels.KERNELS,
        rms_norm_block_quantize.CONTRACT.name: rms_norm_block_quantize_kernels.KERNELS,
    }
)
