"""The block-scaled product that is added to the residual stream, in torch."""

from __future__ import annotations

from ..common.torch_contract import TorchOperator
from . import reference
from .schema import CONTRACT

block_scaled_linear_add = TorchOperator(contract=CONTRACT, reference=reference.block_scaled_linear_add)
"""Returns `y` in the type of `stream`, and leaves `stream` as it was."""
