"""Loads a model's weights onto a device, packs projections that share an input, and copies none twice.

Only the packed matrices are allocated. The parameters of the `SalaForCausalLM` around them are views of their rows.
So one matrix product serves q, k, v and the gate of a mixer, or gate and up of an MLP, and the reference model computes
from the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ..checkpoint.config import SalaConfig
from ..checkpoint.keymap import EMBEDDING, LM_HEAD, Weight, layer_packs, weights
from ..errors import RunError
from ..model.half_precision import stream_scale
from ..model.layers import DecoderLayer
from ..model.sala import SalaForCausalLM
from ..specs import Precision, format_bytes
from .products import PackedProduct, Rounding
from .quantized import StoredWeight

DOWN_PROJ = "mlp.down_proj.weight"
"""What the name of the weight that leaves an MLP ends with."""


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
    roundings: Mapping[str, Rounding] = field(default_factory=dict)
    """Rounding of the inputs of quantised weights, by the names of the weights."""

    def product(self, matrix: Tensor, names: Sequence[str]) -> PackedProduct:
        """The product with a matrix that holds the weights of these names, one after the other."""
        rows = [self.model.get_parameter(name).shape[0] for name in names]
        return PackedProduct(matrix, list(zip(rows, map(self.roundings.get, names), strict=True)))

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


def load_packed(
    source: WeightSource,
    precision: Precision,
    device: torch.device,
    quantized: Mapping[str, StoredWeight] | None = None,
) -> PackedModel:
    """Put the weights on the device, in the type of `precision`, those of `quantized` dequantised.

    Raises: RunError if the device has no room for them, saying how much they take.
    """
    try:
        return _load(source, precision, device, quantized or {})
    except torch.OutOfMemoryError as error:
        size = format_bytes(weights_bytes(source.config, precision))
        free = format_bytes(torch.cuda.mem_get_info(device)[0])
        raise RunError(
            f"the weights take {size} in {precision} and do not fit the GPU, which has {free} left: end what else runs "
            "there, or choose a GPU with more memory"
        ) from error


def _load(
    source: WeightSource, precision: Precision, device: torch.device, quantized: Mapping[str, StoredWeight]
) -> PackedModel:
    config = source.config
    dtype: torch.dtype = getattr(torch, precision.dtype)
    with torch.device("meta"):
        model = SalaForCausalLM(config)
    waiting = {weight.name: weight for weight in weights(config)}
    state: dict[str, Tensor] = {}

    def fill(weight: Weight, out: Tensor) -> None:
        if weight.name in quantized:
            out.copy_(quantized[weight.name].values())
        else:
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
    roundings = {name: _rounding(name, weight, dtype) for name, weight in quantized.items() if weight.rounds_input}
    for name, rounding in roundings.items():
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(_before(rounding))
    return PackedModel(
        model=model.requires_grad_(False).eval(),
        mixer_in=mixer_in,
        mlp_in=mlp_in,
        precision=precision,
        roundings=roundings,
    )


def _rounding(name: str, weight: StoredWeight, dtype: torch.dtype) -> Rounding:
    # The input of down_proj has the unit of the residual stream (`model.half_precision`).
    unit = stream_scale(dtype) if name.endswith(DOWN_PROJ) else 1.0
    scale = None if weight.input_scale is None else weight.input_scale * unit
    return Rounding(precision=weight.precision, scale=scale)


def _before(rounding: Rounding) -> Any:
    """A hook that rounds the input of a projection of the reference model."""

    def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = arguments[0].clone()
        rounding(rows.view(-1, rows.shape[-1]))
        return (rows,)

    return hook
