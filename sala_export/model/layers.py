"""The layers of MiniCPM-SALA around its two attention operators.

B batch, T tokens of the chunk, H hidden size. Module and parameter names are those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..checkpoint.config import Mixer, SalaConfig
from ..ops.infllmv2_attention.torch_op import infllmv2_attention_
from ..ops.lightning_attention.torch_op import lightning_attention
from .attributes import operator_attributes
from .half_precision import gated_product, stream_scale

Cache = tuple[Tensor, ...]
"""Tensors of one layer in the order of `signature.py`: `(state,)` or `(key, value, k1, k2)`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepInputs:
    """What every layer of one step shares."""

    past_length: Tensor
    """int32 [B]"""
    context_length: Tensor
    """int32 [B]"""
    rope_cos_sin: Tensor
    """fp32 [B, T, head_dim]"""


class RMSNorm(nn.Module):
    """`cast(x / sqrt(mean(x^2) + c^2 eps)) * weight`: the mean in fp32, the cast to x's type before the weight.

    x is the residual stream, scaled by c as `half_precision.py` says.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        eps = self.eps * stream_scale(x.dtype) ** 2
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return scaled.to(x.dtype) * self.weight


class Linear(nn.Linear):
    """A projection without bias, weight [out, in]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)


def packed(x: Tensor, projections: Sequence[nn.Module]) -> Tensor:
    """Several projections of one input, side by side along the output."""
    return torch.cat([projection(x) for projection in projections], dim=-1)


class MLP(nn.Module):
    """`down(silu(gate x) * up x)`, in the unit of the residual stream."""

    def __init__(self, config: SalaConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.down_proj(gated_product(self.gate_proj(x), self.up_proj(x)))
        return hidden


class LightningMixer(nn.Module):
    """Linear attention with constant decay; cache `(state,)`."""

    def __init__(self, config: SalaConfig) -> None:
        super().__init__()
        width = config.num_attention_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, width)
        self.k_proj = Linear(config.hidden_size, width)
        self.v_proj = Linear(config.hidden_size, width)
        self.z_proj = Linear(config.hidden_size, width)
        self.o_proj = Linear(width, config.hidden_size)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.o_norm = RMSNorm(width, config.rms_norm_eps)
        self.attributes = operator_attributes(config, Mixer.LIGHTNING)

    def forward(self, x: Tensor, cache: Cache, step: StepInputs) -> tuple[Tensor, Cache]:
        projections = (self.q_proj, self.k_proj, self.v_proj, self.z_proj)
        y, state = lightning_attention(
            packed(x, projections),
            self.q_norm.weight,
            self.k_norm.weight,
            self.o_norm.weight,
            step.rope_cos_sin,
            *cache,
            **self.attributes,
        )
        return self.o_proj(y), (state,)


class SparseMixer(nn.Module):
    """InfLLM-v2 attention; cache `(key, value, k1, k2)`, updated in place."""

    def __init__(self, config: SalaConfig) -> None:
        super().__init__()
        width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, width)
        self.k_proj = Linear(config.hidden_size, kv_width)
        self.v_proj = Linear(config.hidden_size, kv_width)
        self.o_gate = Linear(config.hidden_size, width)
        self.o_proj = Linear(width, config.hidden_size)
        self.attributes = operator_attributes(config, Mixer.SPARSE)

    def forward(self, x: Tensor, cache: Cache, step: StepInputs) -> tuple[Tensor, Cache]:
        projections = (self.q_proj, self.k_proj, self.v_proj, self.o_gate)
        inputs = (packed(x, projections), step.past_length, step.context_length, *cache)
        return self.o_proj(infllmv2_attention_(*inputs, **self.attributes)), cache


class DecoderLayer(nn.Module):
    """Mixer and MLP, each normed before and scaled by `residual_scale` after, in the unit of the stream."""

    def __init__(self, config: SalaConfig, mixer: Mixer) -> None:
        super().__init__()
        self.self_attn = LightningMixer(config) if mixer is Mixer.LIGHTNING else SparseMixer(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.residual_scale = config.residual_scale

    def forward(self, hidden: Tensor, cache: Cache, step: StepInputs) -> tuple[Tensor, Cache]:
        mixed, cache = self.self_attn(self.input_layernorm(hidden), cache, step)
        hidden = hidden + mixed * (self.residual_scale * stream_scale(mixed.dtype))
        return hidden + self.mlp(self.post_attention_layernorm(hidden)) * self.residual_scale, cache
