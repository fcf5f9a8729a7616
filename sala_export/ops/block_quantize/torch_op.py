"""The operator that quantises rows in torch."""

from __future__ import annotations

from ..common.torch_contract import TorchOperator
from . import reference
from .schema import CONTRACT

block_quantize = TorchOperator(contract=CONTRACT, reference=reference.block_quantize)
"""Returns `(codes, scales)`."""
