"""The lightning operator in torch, its call checked against the contract: what models run."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..common.torch_contract import bind_call
from .reference import lightning_attention as reference
from .schema import CONTRACT


def lightning_attention(
    qkvz: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    o_norm: Tensor,
    rope_cos_sin: Tensor,
    state: Tensor,
    **attributes: Any,
) -> tuple[Tensor, Tensor]:
    """Contract of schema.py: returns `(y, state_out)`, leaves `state` as it was.

    Raises: ShapeError if a shape, type or attribute breaks the contract.
    """
    tensors = (qkvz, q_norm, k_norm, o_norm, rope_cos_sin, state)
    bind_call(CONTRACT, tensors, attributes)
    return reference(*tensors, **attributes)
