"""LightningAttention in plain PyTorch: the truth that every other implementation is compared with.

B batch, T tokens, H heads, D head dim, L rows of one internal chunk. Equations: README.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_TOKENS = 64


def decay_slopes(num_heads: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """`s_h = 2^(-8 (h + 1) / H)`, [H]; head h keeps exp(-s_h) of its state per token."""
    heads = torch.arange(1, num_heads + 1, dtype=torch.float64, device=device)
    return torch.exp2(-8.0 * heads / num_heads).to(dtype)


def lightning_attention(
    qkvz: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    o_norm: Tensor,
    rope_cos_sin: Tensor,
    state: Tensor,
    *,
    num_heads: int,
    head_dim: int,
    eps: float,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Outputs `(y, state_out)` as in schema.py; `state` is left as it was.

    Computes in fp32, or in fp64 if the inputs are fp64.
    """
    batch, tokens, _ = qkvz.shape
    compute = torch.promote_types(torch.float32, qkvz.dtype)
    q, k, v, z = qkvz.view(batch, tokens, 4, num_heads, head_dim).unbind(2)
    cos, sin = rope_cos_sin.to(compute)[:, :, None, :].chunk(2, dim=-1)
    q = _rotate(_rms_norm(q.to(compute), q_norm.to(compute), eps), cos, sin).to(qkvz.dtype).to(compute)
    k = _rotate(_rms_norm(k.to(compute), k_norm.to(compute), eps), cos, sin).to(qkvz.dtype).to(compute)

    o, state_out = _recurrence(q, k, v.to(compute), state.to(compute), scale)
    o = _rms_norm(o.reshape(batch, tokens, num_heads * head_dim), o_norm.to(compute), eps)
    gate = torch.sigmoid(z.to(compute)).reshape(batch, tokens, num_heads * head_dim)
    return (o * gate).to(qkvz.dtype), state_out.to(state.dtype)


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in rotate-half form; x [B, T, H, D], cos and sin [B, T, 1, D / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _recurrence(q: Tensor, k: Tensor, v: Tensor, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The chunk form of the README; q, k, v [B, T, H, D], state [B, H, D, D]."""
    _, tokens, heads, _ = q.shape
    slopes = decay_slopes(heads, q.dtype, q.device)
    outputs = []
    for start in range(0, tokens, _CHUNK_TOKENS):
        rows = slice(start, min(start + _CHUNK_TOKENS, tokens))
        q_c, k_c, v_c = (x[:, rows].transpose(1, 2) for x in (q, k, v))
        length = q_c.shape[2]
        index = torch.arange(length, dtype=q.dtype, device=q.device)
        distance = index[:, None] - index[None, :]
        within = torch.exp(-slopes[:, None, None] * distance.clamp(min=0)) * (distance >= 0)
        into = torch.exp(-slopes[:, None] * (index + 1))[..., None]
        out_of = torch.exp(-slopes[:, None] * (length - 1 - index))[..., None]
        whole = torch.exp(-slopes * length)[:, None, None]
        outputs.append(scale * (into * (q_c @ state) + (q_c @ k_c.transpose(-1, -2) * within) @ v_c))
        state = whole * state + (out_of * k_c).transpose(-1, -2) @ v_c
    return torch.cat(outputs, dim=2).transpose(1, 2), state
