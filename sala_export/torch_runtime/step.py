"""One step of the model in memory that does not move, so that a CUDA graph can hold it.

It computes what `SalaForCausalLM.step` does, on the buffers of `layout.py`, with caches updated in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoint.keymap import layer_packs
from ..model.half_precision import stream_scale
from ..model.layers import Cache
from ..model.mixers import MIXERS
from ..model.signature import INPUT_IDS, LOGIT_ROWS, LOGITS, TOKEN_INPUTS
from .layout import Arena, Layout
from .operators import Operators
from .products import PackedProduct
from .weights import DOWN_PROJ, PackedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerProducts:
    """The matrix products of a layer."""

    mixer_in: PackedProduct
    mixer_out: PackedProduct
    mlp_in: PackedProduct
    mlp_out: PackedProduct

    @classmethod
    def of(cls, packed: PackedModel, layer: int) -> LayerProducts:
        mixer, mlp = layer_packs(packed.config, layer)
        out = f"model.layers.{layer}.self_attn.o_proj.weight"
        down = f"model.layers.{layer}.{DOWN_PROJ}"
        weight = packed.model.get_parameter
        return cls(
            mixer_in=packed.product(packed.mixer_in[layer], mixer),
            mixer_out=packed.product(weight(out), [out]),
            mlp_in=packed.product(packed.mlp_in[layer], mlp),
            mlp_out=packed.product(weight(down), [down]),
        )


class Step:
    """A step of a fixed number of tokens on the caches of one session, or of one token on the caches of B sequences.

    It reads the token inputs and writes the caches and `logits` fp32 [R, V], which are valid until the next step. No
    launch depends on a position.
    """

    def __init__(
        self,
        packed: PackedModel,
        products: Sequence[LayerProducts],
        operators: Operators,
        layout: Layout,
        arena: Arena,
        caches: Sequence[Cache],
    ) -> None:
        """Args: `caches` by layer, tensors [B, ...] where B is the batch of `layout`.

        Raises: ShapeError or UnsupportedError if the operators cannot serve these caches.
        """
        self._packed = packed
        self._products = products
        self._operators = operators
        buffers = layout.views(arena.device)
        self._device_inputs = arena.device[: layout.input_bytes]
        self._host_inputs = arena.host[: layout.input_bytes]
        self._host_views = layout.views(arena.host, TOKEN_INPUTS)
        self.logits = buffers[f"head/{LOGITS}"]
        self._logit_rows = buffers[LOGIT_ROWS]
        self.tokens = buffers[INPUT_IDS].shape[1]
        """T, of each sequence."""
        self._ids = buffers[INPUT_IDS].flatten()
        self._hidden, self._normed = buffers["hidden"], buffers["normed"]
        self._head_hidden, self._head_normed = buffers["head/hidden"], buffers["head/normed"]
        self._product = buffers["head/product"]
        self._gate_up = buffers["mlp/gate_up"]
        self._mixers = []
        self._rows: list[tuple[Tensor, Tensor]] = []
        """By layer, the packed projection [B T, N] and the operator's rows [B T, W]."""
        config = packed.config
        for mixer, layer, cache in zip(config.mixer_types, packed.layers, caches, strict=True):
            prefix = f"{mixer}/"
            own = {name.removeprefix(prefix): x for name, x in buffers.items() if name.startswith(prefix)}
            own |= {name: buffers[name] for name in TOKEN_INPUTS}
            self._mixers.append(operators.bound_mixer(layer, cache, own))
            kind = MIXERS[mixer]
            self._rows.append((own[kind.packed.name].flatten(0, 1), own[kind.rows.name].flatten(0, 1)))

    def bring(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Copy the token inputs to the device, all at once."""
        for name, view in self._host_views.items():
            view.copy_(torch.from_numpy(inputs[name]))
        self._device_inputs.copy_(self._host_inputs, non_blocking=True)

    def run(self) -> None:
        """Launch the step on the current stream."""
        model, layers, config = self._packed.model, self._packed.layers, self._packed.config
        stack = model.model
        unit = stream_scale(self._packed.dtype)
        hidden, normed = self._hidden, self._normed
        torch.index_select(stack.embed_tokens.weight, 0, self._ids, out=hidden)
        hidden *= config.scale_emb * unit
        self._operators.norm(layers[0].input_layernorm, hidden, normed)
        last = len(layers) - 1
        for index, layer in enumerate(layers):
            packed, y = self._rows[index]
            products = self._products[index]
            products.mixer_in(normed, packed)
            self._mixers[index]()
            products.mixer_out(y, normed)
            self._operators.add_norm(layer.post_attention_layernorm, hidden, normed, layer.residual_scale * unit)
            products.mlp_in(normed, self._gate_up)
            products.mlp_out(self._operators.gated_product(self._gate_up), normed)
            if index < last:
                following = layers[index + 1].input_layernorm
                self._operators.add_norm(following, hidden, normed, layer.residual_scale)
        # Only the rows whose logits are wanted go on.
        torch.index_select(hidden, 0, self._logit_rows, out=self._head_hidden)
        torch.index_select(normed, 0, self._logit_rows, out=self._head_normed)
        hidden, normed = self._head_hidden, self._head_normed
        self._operators.add_norm(stack.norm, hidden, normed, layers[last].residual_scale)
        normed /= config.logit_divisor
        torch.mm(normed, model.lm_head.weight.t(), out=self._product)
        self.logits.copy_(self._product)
