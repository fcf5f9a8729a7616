"""The layers of MiniCPM-SALA around its two attention operators.

B batch, T tokens of the chunk, H hidden size. Module and parameter names are those of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.config import Mixer, SalaConfig
from ..checkpoint.keymap import MIXER_MODULES, mixer_shapes
from ..ops.common.torch_contract import TorchOperator
from ..ops.infllmv2_attention.torch_op import infllmv2_attention_
from ..ops.lightning_attention.torch_op import lightning_attention
from .half_precision import gated_product, stream_scale
from .mixers import MIXERS

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

    def named(self) -> dict[str, Tensor]:
        """The tensors by the operators' names for them."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


OPERATORS: Mapping[str, TorchOperator[Any]] = {
    operator.contract.name: operator for operator in (lightning_attention, infllmv2_attention_)
}
"""PyTorch operators by their contract. Each gives its outputs, or the first alone if it updates its caches in place."""


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


class TokenMixer(nn.Module):
    """The packed projection, the operator of a mixer and the output projection."""

    o_proj: Linear

    def __init__(self, config: SalaConfig, mixer: Mixer) -> None:
        super().__init__()
        self.kind, self.roles = MIXERS[mixer], MIXER_MODULES[mixer]
        self.attributes = self.kind.attributes(config)
        for role, shape in mixer_shapes(config, mixer).items():
            module = RMSNorm(shape[0], config.rms_norm_eps) if len(shape) == 1 else Linear(shape[1], shape[0])
            self.add_module(role, module)

    def forward(self, x: Tensor, cache: Cache, step: StepInputs) -> tuple[Tensor, Cache]:
        projections = torch.cat([self.get_submodule(role)(x) for role in self.roles.packed], dim=-1)
        y, cache = self.operate(self.operator_inputs(projections, cache, step.named()), cache)
        return self.o_proj(y), cache

    def operator_inputs(self, packed: Tensor, cache: Cache, others: Mapping[str, Tensor]) -> list[Tensor]:
        """What the operator takes, in its order. Args: `others`, the inputs of the step by name, and any more."""
        norms = {norm: self.get_parameter(f"{norm}.weight") for norm in self.roles.norms}
        return self.kind.inputs(packed, cache, {**others, **norms})

    def operate(self, inputs: Sequence[Tensor], cache: Cache) -> tuple[Tensor, Cache]:
        """What the operator gives of `operator_inputs`, and the cache after it; it may be `cache`, updated in place."""
        given = OPERATORS[self.kind.contract.name](*inputs, **self.attributes)
        return (given, cache) if isinstance(given, Tensor) else (given[0], given[1:])


class DecoderLayer(nn.Module):
    """Mixer and MLP, each normed before and scaled by `residual_scale` after, in the unit of the stream."""

    def __init__(self, config: SalaConfig, mixer: Mixer) -> None:
        super().__init__()
        self.self_attn = TokenMixer(config, mixer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.residual_scale = config.residual_scale

    def forward(self, hidden: Tensor, cache: Cache, step: StepInputs) -> tuple[Tensor, Cache]:
        mixed, cache = self.self_attn(self.input_layernorm(hidden), cache, step)
        hidden = hidden + mixed * (self.residual_scale * stream_scale(mixed.dtype))
        return hidden + self.mlp(self.post_attention_layernorm(hidden)) * self.residual_scale, cache
