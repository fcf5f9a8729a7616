"""The block-scaled product in torch."""

from __future__ import annotations

from ..common.torch_contract import TorchOperator
from . import reference
from .schema import CONTRACT

block_scaled_linear = TorchOperator(contract=CONTRACT, reference=reference.block_scaled_linear)
"""Returns `y` in float32."""
