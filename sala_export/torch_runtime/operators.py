"""The operations of a step besides matrix products, and the reference for them, which runs on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch import Tensor

from ..checkpoint.config import Mixer
from ..model.half_precision import gated_product
from ..model.layers import Cache, DecoderLayer, LightningMixer, RMSNorm
from ..ops.infllmv2_attention.torch_op import infllmv2_attention_
from ..ops.lightning_attention.reference import lightning_attention
from ..specs import TensorSpec


class Operators(Protocol):
    """Operations on T tokens, hidden size H, intermediate size I. Results go where the caller says."""

    def workspaces(self, mixer: Mixer, tokens: int) -> Iterable[TensorSpec]:
        """Scratch tensors that `bound_mixer` needs among its buffers."""

    def bound_mixer(self, layer: DecoderLayer, cache: Cache, buffers: Mapping[str, Tensor]) -> Callable[[], None]:
        """Make a function that runs the layer's attention operator on these tensors. It writes `y` and the caches.

        Args: `buffers` has token inputs, packed projection, `y` and workspaces by the operator's names.
        Raises: ShapeError or UnsupportedError if the operator cannot serve them.
        """

    def norm(self, norm: RMSNorm, hidden: Tensor, out: Tensor) -> None:
        """Compute `out = norm(hidden)`, both [T, H]."""

    def add_norm(self, norm: RMSNorm, hidden: Tensor, delta: Tensor, scale: float) -> None:
        """Compute `hidden += scale * delta`, then `delta = norm(hidden)`, all [T, H]."""

    def gated_product(self, gate_up: Tensor) -> Tensor:
        """Compute `silu(gate) * up` of [T, 2 I] over the gate. Returns a view [T, I] of it."""


class ReferenceOperators:
    """Operators in plain PyTorch, which allocate what they need and read lengths on the host."""

    def workspaces(self, mixer: Mixer, tokens: int) -> tuple[TensorSpec, ...]:
        return ()

    def bound_mixer(self, layer: DecoderLayer, cache: Cache, buffers: Mapping[str, Tensor]) -> Callable[[], None]:
        mixer = layer.self_attn
        y = buffers["y"]
        if isinstance(mixer, LightningMixer):
            norms = (mixer.q_norm.weight, mixer.k_norm.weight, mixer.o_norm.weight)
            (state,) = cache

            def run_lightning() -> None:
                rows, after = lightning_attention(
                    buffers["qkvz"], *norms, buffers["rope_cos_sin"], state, **mixer.attributes
                )
                y.copy_(rows)
                state.copy_(after)

            return run_lightning

        inputs = (buffers["qkvg"], buffers["past_length"], buffers["context_length"], *cache)

        def run_sparse() -> None:
            y.copy_(infllmv2_attention_(*inputs, **mixer.attributes))

        return run_sparse

    def norm(self, norm: RMSNorm, hidden: Tensor, out: Tensor) -> None:
        out.copy_(norm(hidden))

    def add_norm(self, norm: RMSNorm, hidden: Tensor, delta: Tensor, scale: float) -> None:
        hidden += delta * scale
        delta.copy_(norm(hidden))

    def gated_product(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return gate.copy_(gated_product(gate, up))
