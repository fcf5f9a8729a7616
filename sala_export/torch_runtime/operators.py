"""The operations of a step besides matrix products, and the reference for them, which runs on any device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch import Tensor

from ..checkpoint.config import Mixer
from ..model.half_precision import gated_product
from ..model.layers import Cache, DecoderLayer, RMSNorm
from ..specs import TensorSpec


class Operators(Protocol):
    """Operations on R rows, hidden size H, intermediate size I. Results go where the caller says.

    The rows are T tokens of each of B sequences, R = B T.
    """

    def workspaces(self, mixer: Mixer, tokens: int, batch: int, capacity: int) -> Iterable[TensorSpec]:
        """Scratch tensors that `bound_mixer` needs among its buffers, for `tokens` T and `batch` B.

        They serve caches of up to `capacity` tokens.
        """

    def bound_mixer(self, layer: DecoderLayer, cache: Cache, buffers: Mapping[str, Tensor]) -> Callable[[], None]:
        """Make a function that runs the layer's attention operator on these tensors. It writes `y` and the caches.

        Args: `buffers` has token inputs, packed projection, `y` and workspaces by the operator's names.
        Raises: ShapeError or UnsupportedError if the operator cannot serve them.
        """

    def norm(self, norm: RMSNorm, hidden: Tensor, out: Tensor) -> None:
        """Compute `out = norm(hidden)`, both [R, H]."""

    def add_norm(self, norm: RMSNorm, hidden: Tensor, delta: Tensor, scale: float) -> None:
        """Compute `hidden += scale * delta`, then `delta = norm(hidden)`, all [R, H]."""

    def gated_product(self, gate_up: Tensor) -> Tensor:
        """Compute `silu(gate) * up` of [R, 2 I] over the gate. Returns a view [R, I] of it."""


class ReferenceOperators:
    """Operators in plain PyTorch, which allocate what they need and read lengths on the host."""

    def workspaces(self, mixer: Mixer, tokens: int, batch: int, capacity: int) -> tuple[TensorSpec, ...]:
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
