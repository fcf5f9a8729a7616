"""The lightning operator in torch."""

from __future__ import annotations

from ..common.torch_contract import TorchOperator
from . import reference
from .schema import CONTRACT

lightning_attention = TorchOperator(contract=CONTRACT, reference=reference.lightning_attention)
"""Returns `(y, state_out)` and leaves `state` as it was."""
