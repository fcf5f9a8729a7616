"""Layers one at a time: a model of any size in the memory of one layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..checkpoint.config import SalaConfig
from ..checkpoint.keymap import layer_weights
from ..checkpoint.reader import Checkpoint
from ..specs import DType
from .emulation import emulate
from .layers import DecoderLayer, RMSNorm, StepInputs
from .rope import inv_freq_tensor, rope_cos_sin
from .signature import cache_sizes, signature


def layer_prefix(layer: int) -> str:
    """What names of a layer's tensors begin with in a checkpoint."""
    return f"model.layers.{layer}."


def make_layer(config: SalaConfig, layer: int, weights: Mapping[str, Tensor]) -> DecoderLayer:
    """A layer whose parameters are `weights`, not copied, by name within the layer."""
    with torch.device("meta"):
        made = DecoderLayer(config, config.mixer_types[layer])
    made.load_state_dict(dict(weights), assign=True)
    return made.requires_grad_(False).eval()


def load_layer(checkpoint: Checkpoint, layer: int) -> DecoderLayer:
    """A layer in fp32; its quantised projections are emulated and stay as they are stored."""
    prefix = layer_prefix(layer)
    with torch.device("meta"):
        made = DecoderLayer(checkpoint.config, checkpoint.config.mixer_types[layer])
    names = [weight.name for weight in layer_weights(checkpoint.config, layer)]
    quantized = {name: checkpoint.quantized[name] for name in names if name in checkpoint.quantized}
    emulate(made, {name.removeprefix(prefix): weight for name, weight in quantized.items()})
    weights = {name: checkpoint.tensor(name).to(torch.float32) for name in names if name not in quantized}
    made.load_state_dict({name.removeprefix(prefix): weight for name, weight in weights.items()}, assign=True)
    return made.requires_grad_(False).eval()


def embed(config: SalaConfig, embedding: Tensor, input_ids: Tensor) -> Tensor:
    """The residual stream that enters layer 0, fp32 [T, H], of tokens int64 [T]; `embedding` [V, H] of any type."""
    return embedding[input_ids].to(torch.float32) * config.scale_emb


class LayerRun:
    """Runs whole contexts through one layer after the other, in fp32."""

    def __init__(self, config: SalaConfig) -> None:
        self._config = config
        self._inv_freq = inv_freq_tensor(config.rope_theta, config.head_dim)
        self._caches = signature(config, DType.FLOAT32).caches

    def run(self, layer: int, module: nn.Module, hidden: Tensor) -> Tensor:
        """The residual stream after a layer, fp32 [T, H], of one whole context `hidden` fp32 [T, H]."""
        tokens = len(hidden)
        sizes = cache_sizes(self._config, tokens)
        cache = tuple(
            torch.zeros(entry.past.bound(sizes), dtype=getattr(torch, entry.past.dtype.value))
            for entry in self._caches
            if entry.layer == layer
        )
        step = StepInputs(
            past_length=torch.zeros(1, dtype=torch.int32),
            context_length=torch.full((1,), tokens, dtype=torch.int32),
            rope_cos_sin=rope_cos_sin(torch.arange(tokens)[None], self._inv_freq),
        )
        with torch.no_grad():
            output: Tensor = module(hidden[None], cache, step)[0][0]
        return output


def logits(config: SalaConfig, final_norm: Tensor, head: Tensor, hidden: Tensor) -> Tensor:
    """fp32 [T, V] of the residual stream after the last layer, fp32 [T, H]; `head` [V, H] of any type."""
    norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.load_state_dict({"weight": final_norm.to(torch.float32)}, assign=True)
    with torch.no_grad():
        return functional.linear(norm(hidden) / config.logit_divisor, head.to(torch.float32))
