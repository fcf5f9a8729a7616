"""`torch.ops.sala.lightning_attention`: the operator that models call."""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.torch_contract import bind_call
from .reference import lightning_attention as reference
from .schema import CONTRACT


@torch.library.custom_op("sala::lightning_attention", mutates_args=())
def lightning_attention(
    qkvz: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    o_norm: Tensor,
    rope_cos_sin: Tensor,
    state: Tensor,
    num_heads: int,
    head_dim: int,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Functional form of the contract in schema.py: returns `(y, state_out)`, leaves `state` as it was.

    Raises: ShapeError if a shape, type or attribute breaks the contract.
    """
    attributes = {"num_heads": num_heads, "head_dim": head_dim, "eps": eps, "scale": scale}
    bind_call(CONTRACT, (qkvz, q_norm, k_norm, o_norm, rope_cos_sin, state), attributes)
    return reference(
        qkvz, q_norm, k_norm, o_norm, rope_cos_sin, state, num_heads=num_heads, head_dim=head_dim, eps=eps, scale=scale
    )


@lightning_attention.register_fake
def _(
    qkvz: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    o_norm: Tensor,
    rope_cos_sin: Tensor,
    state: Tensor,
    num_heads: int,
    head_dim: int,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    batch, tokens, _ = qkvz.shape
    return qkvz.new_empty(batch, tokens, num_heads * head_dim), torch.empty_like(state)
