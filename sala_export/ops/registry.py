"""The operators, by contract. Importing this imports neither torch nor triton."""

from __future__ import annotations

from .common.contract import Contract
from .infllmv2_attention.schema import CONTRACT as INFLLMV2_ATTENTION
from .lightning_attention.schema import CONTRACT as LIGHTNING_ATTENTION

__all__ = ["CONTRACTS", "INFLLMV2_ATTENTION", "LIGHTNING_ATTENTION"]

CONTRACTS: tuple[Contract, ...] = (LIGHTNING_ATTENTION, INFLLMV2_ATTENTION)
