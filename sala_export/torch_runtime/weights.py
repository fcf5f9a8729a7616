"""Loads a model's weights onto a device, packs projections that share an input, and copies none twice.

Only the packed matrices are allocated. The parameters of the `SalaForCausalLM` around them are views of their rows.
So one matrix product serves q, k, v and the gate of a mixer, or gate and up of an MLP, and the reference model computes
from the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor

from ..checkpoint.config import SalaConfig
from ..checkpoint.keymap import EMBEDDING, LM_HEAD, Weight, layer_packs, weights
from ..errors import RunError
from ..model.layers import DecoderLayer
from ..model.sala import SalaForCausalLM
from ..specs import Precision, format_bytes


class WeightSource(Protocol):
    """A source of weights: a `Checkpoint`, or `RandomOnDevice`."""

    @property
    def config(self) -> SalaConfig: ...

    def fill(self, weight: Weight, out: Tensor) -> None:
        """Write a weight of `keymap.weights` to `out`, of its shape, on any device and in fp32, bf16 or fp16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedModel:
    """The model and, by layer, the matrices that its parameters are views of."""

    model: SalaForCausalLM
    mixer_in: tuple[Tensor, ...]
    """Packed weights [4 H D, hidden] of q, k, v and z, or [2 (H + G) D, hidden] of q, k, v and the gate."""
    mlp_in: tuple[Tensor, ...]
    """Packed weights [2 I, hidden] of gate and up."""
    precision: Precision

    @property
    def config(self) -> SalaConfig:
        return self.model.config

    @property
    def layers(self) -> Sequence[DecoderLayer]:
        return cast("Sequence[DecoderLayer]", self.model.model.layers)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        return self.model.lm_head.weight.device


def weights_bytes(config: SalaConfig, precision: Precision) -> int:
    """Bytes that `load_packed` takes on the device. A tied embedding counts once."""
    return sum(weight.elements for weight in weights(config)) * precision.dtype.bytes


def load_packed(source: WeightSource, precision: Precision, device: torch.device) -> PackedModel:
    """Put the weights on the device, in the type of `precision`.

    Raises: RunError if the device has no room for them, saying how much they take.
    """
    try:
        return _load(source, precision, device)
    except torch.OutOfMemoryError as error:
        size = format_bytes(weights_bytes(source.config, precision))
        free = format_bytes(torch.cuda.mem_get_info(device)[0])
        raise RunError(
            f"the weights take {size} in {precision} and do not fit the GPU, which has {free} left: end what else runs "
            "there, or choose a GPU with more memory"
        ) from error


def _load(source: WeightSource, precision: Precision, device: torch.device) -> PackedModel:
    config = source.config
    dtype: torch.dtype = getattr(torch, precision.dtype)
    with torch.device("meta"):
        model = SalaForCausalLM(config)
    waiting = {weight.name: weight for weight in weights(config)}
    state: dict[str, Tensor] = {}

    def fill(weight: Weight, out: Tensor) -> None:
        source.fill(weight, out)
        state[weight.name] = out

    def pack(names: tuple[str, ...]) -> Tensor:
        parts = [waiting.pop(name) for name in names]
        rows = [weight.shape[0] for weight in parts]
        packed = torch.empty(sum(rows), config.hidden_size, dtype=dtype, device=device)
        for weight, part in zip(parts, torch.split(packed, rows), strict=True):
            fill(weight, part)
        return packed

    packs = [layer_packs(config, layer) for layer in range(config.num_hidden_layers)]
    packed = [(pack(mixer), pack(mlp)) for mixer, mlp in packs]
    for weight in waiting.values():
        fill(weight, torch.empty(weight.shape, dtype=dtype, device=device))
    if config.tie_word_embeddings:
        state[LM_HEAD] = state[EMBEDDING]
    model.load_state_dict(state, assign=True)
    mixer_in, mlp_in = zip(*packed, strict=True)
    return PackedModel(model=model.requires_grad_(False).eval(), mixer_in=mixer_in, mlp_in=mlp_in, precision=precision)
