"""The operators, by contract. Importing this imports neither torch nor triton."""

from __future__ import annotations

from .block_quantize.schema import CONTRACT as BLOCK_QUANTIZE
from .block_scaled_linear.schema import CONTRACT as BLOCK_SCALED_LINEAR
from .block_scaled_linear_add.schema import CONTRACT as BLOCK_SCALED_LINEAR_ADD
from .common.contract import Contract
from .infllmv2_attention.schema import CONTRACT as INFLLMV2_ATTENTION
from .lightning_attention.schema import CONTRACT as LIGHTNING_ATTENTION
from .rms_norm_block_quantize.schema import CONTRACT as RMS_NORM_BLOCK_QUANTIZE

__all__ = [
    "BLOCK_QUANTIZE",
    "BLOCK_SCALED_LINEAR",
    "BLOCK_SCALED_LINEAR_ADD",
    "CONTRACTS",
    "INFLLMV2_ATTENTION",
    "LIGHTNING_ATTENTION",
    "RMS_NORM_BLOCK_QUANTIZE",
]

CONTRACTS: tuple[Contract, ...] = (
    LIGHTNING_ATTENTION,
    INFLLMV2_ATTENTION,
    BLOCK_QUANTIZE,
    RMS_NORM_BLOCK_QUANTIZE,
    BLOCK_SCALED_LINEAR,
    BLOCK_SCALED_LINEAR_ADD,
)
