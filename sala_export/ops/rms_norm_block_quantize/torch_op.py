"""The operator that norms and quantises rows in torch."""

from __future__ import annotations

from ..common.torch_contract import TorchOperator
from . import reference
from .schema import CONTRACT

rms_norm_block_quantize = TorchOperator(contract=CONTRACT, reference=reference.rms_norm_block_quantize)
"""Returns `(codes, scales)`."""
