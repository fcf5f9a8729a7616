"""A checkpoint's weights on a device, projections that share an input packed, without a second copy of any.

The packed matrices are what is allocated; the parameters of the `SalaForCausalLM` around them are views of their rows.
So one matrix product serves q, k, v and the gate of a mixer, or gate and up of an MLP, and the reference model computes
from the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ..checkpoint.config import Mixer, SalaConfig
from ..checkpoint.keymap import EMBEDDING, LM_HEAD
from ..checkpoint.reader import Checkpoint
from ..errors import RunError
from ..model.layers import DecoderLayer
from ..model.sala import SalaForCausalLM
from ..specs import Precision, format_bytes

_MIXER_IN = {
    Mixer.LIGHTNING: ("q_proj", "k_proj", "v_proj", "z_proj"),
    Mixer.SPARSE: ("q_proj", "k_proj", "v_proj", "o_gate"),
}
_MLP_IN = ("gate_proj", "up_proj")


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedModel:
    """The model and, by layer, the matrices that its parameters are views of."""

    model: SalaForCausalLM
    mixer_in: tuple[Tensor, ...]
    """[4 H D, hidden] of q, k, v and z, or [2 (H + G) D, hidden] of q, k, v and the gate."""
    mlp_in: tuple[Tensor, ...]
    """[2 I, hidden] of gate and up."""
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


def weights_bytes(checkpoint: Checkpoint, precision: Precision) -> int:
    """Bytes that `load_packed` takes on the device; a tied embedding counts once, as it is held."""
    elements = sum(location.length // location.dtype.bytes for location in checkpoint.locations.values())
    return elements * precision.dtype.bytes


def load_packed(checkpoint: Checkpoint, precision: Precision, device: torch.device) -> PackedModel:
    """Copy the weights to the device, in the type of `precision`.

    Raises: RunError if the device has no room for them, saying how much they take.
    """
    try:
        return _load(checkpoint, precision, device)
    except torch.OutOfMemoryError as error:
        size = format_bytes(weights_bytes(checkpoint, precision))
        free = format_bytes(torch.cuda.mem_get_info(device)[0])
        raise RunError(
            f"the weights take {size} in {precision} and do not fit the GPU, which has {free} left: end what else runs "
            "there, or choose a GPU with more memory"
        ) from error


def _load(checkpoint: Checkpoint, precision: Precision, device: torch.device) -> PackedModel:
    config = checkpoint.config
    dtype: torch.dtype = getattr(torch, precision.dtype)
    with torch.device("meta"):
        model = SalaForCausalLM(config)
    waiting = dict.fromkeys(checkpoint.locations)
    state: dict[str, Tensor] = {}

    def pack(prefix: str, roles: tuple[str, ...]) -> Tensor:
        names = [f"{prefix}.{role}.weight" for role in roles]
        rows = [checkpoint.locations[name].shape[0] for name in names]
        packed = torch.empty(sum(rows), config.hidden_size, dtype=dtype, device=device)
        for name, part in zip(names, torch.split(packed, rows), strict=True):
            part.copy_(checkpoint.tensor(name))
            state[name] = part
            del waiting[name]
        return packed

    mixer_in, mlp_in = _pack_layers(config, pack)
    for name in waiting:
        state[name] = torch.empty(checkpoint.locations[name].shape, dtype=dtype, device=device)
        state[name].copy_(checkpoint.tensor(name))
    if config.tie_word_embeddings:
        state[LM_HEAD] = state[EMBEDDING]
    model.load_state_dict(state, assign=True)
    return PackedModel(model=model.requires_grad_(False).eval(), mixer_in=mixer_in, mlp_in=mlp_in, precision=precision)


def _pack_layers(
    config: SalaConfig, pack: Callable[[str, tuple[str, ...]], Tensor]
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    mixers, mlps = [], []
    for layer, mixer in enumerate(config.mixer_types):
        mixers.append(pack(f"model.layers.{layer}.self_attn", _MIXER_IN[mixer]))
        mlps.append(pack(f"model.layers.{layer}.mlp", _MLP_IN))
    return tuple(mixers), tuple(mlps)
