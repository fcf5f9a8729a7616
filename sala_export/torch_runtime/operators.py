"""What a step asks for besides matrix products, and the reference's answer, which runs on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch import Tensor

from ..checkpoint.config import Mixer
from ..model.half_precision import gated_product
from ..model.layers import Cache, DecoderLayer, RMSNorm
from ..specs import TensorSpec


class Operators(Protocol):
    """T tokens, H hidden size, I intermediate size; everything is written where the caller says."""

    def workspaces(self, mixer: Mixer, tokens: int) -> Iterable[TensorSpec]:
        """Scratch tensors that `bound_mixer` finds among its buffers."""

    def bound_mixer(self, layer: DecoderLayer, cache: Cache, buffers: Mapping[str, Tensor]) -> Callable[[], None]:
        """What runs the layer's attention operator on these tensors, as often as called: `y` and the cache change.

        Args: `buffers`, the operator's token inputs, packed projection, `y` and workspaces by its names for them.
        Raises: ShapeError or UnsupportedError if the operator cannot serve them.
        """

    def norm(self, norm: RMSNorm, hidden: Tensor, out: Tensor) -> None:
        """`out = norm(hidden)`, both [T, H]."""

    def add_norm(self, norm: RMSNorm, hidden: Tensor, delta: Tensor, scale: float) -> None:
        """`hidden += scale * delta`, then `delta = norm(hidden)`, all [T, H]."""

    def gated_product(self, gate_up: Tensor) -> Tensor:
        """`silu(gate) * up` of [T, 2 I], written over the gate: a view [T, I]."""


class ReferenceOperators:
    """The operators in plain PyTorch; they allocate what they need and read lengths on the host."""

    def workspaces(self, mixer: Mixer, tokens: int) -> tuple[TensorSpec, ...]:
        return ()

    def bound_mixer(self, layer: DecoderLayer, cache: Cache, buffers: Mapping[str, Tensor]) -> Callable[[], None]:
        mixer = layer.self_attn
        inputs = mixer.operator_inputs(buffers[mixer.kind.packed.name], cache, buffers)

        def run() -> None:
            y, updated = mixer.operate(inputs, cache)
            buffers[mixer.kind.rows.name].copy_(y)
            for kept, after in zip(cache, updated, strict=True):
                kept.copy_(after)

        return run

    def norm(self, norm: RMSNorm, hidden: Tensor, out: Tensor) -> None:
        out.copy_(norm(hidden))

    def add_norm(self, norm: RMSNorm, hidden: Tensor, delta: Tensor, scale: float) -> None:
        hidden += delta * scale
        delta.copy_(norm(hidden))

    def gated_product(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return gate.copy_(gated_product(gate, up))
