"""Gives everything that a step writes its place, from the configuration and before a byte is allocated.

One arena holds it all. Token inputs come first, so that one copy brings them. The rows of the residual stream are next.
The two halves of a layer, mixer and MLP, and the head share the rest, because they run one after the other. A step has
T tokens of each of B sequences, and X is the activation type. One of the two is 1: a step is many tokens of one
sequence, or one token of each of several. N = B T rows, of which R go on to the head.

    token inputs | hidden [N, H] | normed [N, H] | lightning: qkvz, y, workspaces
                                                 | sparse:    qkvg, y, workspaces
                                                 | mlp:       gate and up [N, 2 I]
                                                 | head:      hidden, normed [R, H], product, logits [R, V]

`normed` also takes the results of the projections back to the stream, whose input has been consumed by then. The
product `silu(gate) * up` overwrites `gate`. So a step of 9B in bf16 takes 82 KB per token of a chunk of 8192; in
shorter ones the scratch of the sparse layers is the largest, 183 MB for 1024 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checkpoint.config import Mixer, SalaConfig
from ..model.mixers import MIXERS
from ..model.signature import BATCH, LOGITS, ROWS, TOKENS, cache_sizes, operator_tensor, signature
from ..specs import DType, Precision, TensorSpec

Workspaces = Callable[[Mixer, int, int, int], Iterable[TensorSpec]]
"""Gives the scratch tensors of a mixer's operator, from T, B and the capacity of the caches in tokens, for a step of T
tokens of each of B sequences."""

_ALIGNMENT_BYTES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Places of tensors in an arena by name. Names of a mixer begin with `lightning-attn/` or `minicpm4/`."""

    places: Mapping[str, tuple[int, TensorSpec]]
    """Tensors and their offsets in bytes, by name."""
    input_bytes: int
    """Bytes of the token inputs, which begin at 0."""
    total_bytes: int

    def views(self, arena: Tensor, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Make tensors over `arena`, uint8 of at least `total_bytes` (or of the bytes that `names` need)."""
        found = {}
        for name in self.places if names is None else names:
            offset, spec = self.places[name]
            raw = arena[offset : offset + spec.size_bytes({})]
            found[name] = raw.view(getattr(torch, spec.dtype)).view(spec.bound({}))
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Arena:
    """Memory that steps up to some length use in turn."""

    device: Tensor
    """Memory of the device, uint8 [total_bytes of a layout]."""
    host: Tensor
    """Memory of the host, uint8 [input_bytes of the layout]. It is pinned if the device is a GPU."""

    def holds(self, layout: Layout) -> bool:
        return layout.total_bytes <= len(self.device) and layout.input_bytes <= len(self.host)


def step_layout(
    config: SalaConfig,
    precision: Precision,
    tokens: int,
    workspaces: Workspaces,
    capacity: int,
    *,
    batch: int = 1,
    rows: int = 1,
) -> Layout:
    """The layout of a step of `tokens` tokens of each of `batch` sequences, whose caches hold `capacity` tokens.

    The step gives the logits of `rows` of its tokens.
    """
    x = precision.dtype
    sizes = {BATCH: batch, TOKENS: tokens, ROWS: rows}
    inputs = [TensorSpec(spec.name, spec.dtype, spec.bound(sizes)) for spec in signature(config, x).token_inputs]
    places, input_bytes = _placed("", inputs, 0)
    stream = [TensorSpec(name, x, (batch * tokens, config.hidden_size)) for name in ("hidden", "normed")]
    shared, start = _placed("", stream, input_bytes)
    places |= shared
    ends = []
    for phase, specs in _phases(config, x, sizes, workspaces, capacity).items():
        placed, end = _placed(f"{phase}/", specs, start)
        places |= placed
        ends.append(end)
    return Layout(places=places, input_bytes=input_bytes, total_bytes=max(ends))


def _phases(
    config: SalaConfig, x: DType, sizes: dict[str, int], workspaces: Workspaces, capacity: int
) -> dict[str, list[TensorSpec]]:
    tokens, batch, rows = sizes[TOKENS], sizes[BATCH], sizes[ROWS]
    phases = {
        "mlp": [TensorSpec("gate_up", x, (batch * tokens, 2 * config.intermediate_size))],
        "head": [
            *(TensorSpec(name, x, (rows, config.hidden_size)) for name in ("hidden", "normed")),
            TensorSpec("product", x, (rows, config.vocab_size)),
            TensorSpec(LOGITS, DType.FLOAT32, (rows, config.vocab_size)),
        ],
    }
    for mixer in dict.fromkeys(config.mixer_types):
        kind = MIXERS[mixer]
        specs = [operator_tensor(kind, tensor, config, x) for tensor in (kind.packed, kind.rows)]
        phases[mixer] = [
            *(TensorSpec(spec.name, spec.dtype, spec.bound(sizes)) for spec in specs),
            *workspaces(mixer, tokens, batch, capacity),
        ]
    return phases


def _placed(prefix: str, specs: Iterable[TensorSpec], start: int) -> tuple[dict[str, tuple[int, TensorSpec]], int]:
    """`specs` one after the other from `start` on, and where they end."""
    places = {}
    for spec in specs:
        places[prefix + spec.name] = (start, spec)
        start += -(-spec.size_bytes({}) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
    return places, start


def cache_bytes(config: SalaConfig, precision: Precision, capacity: int) -> int:
    """Bytes of the caches of one session for `capacity` tokens."""
    sizes = cache_sizes(config, capacity)
    return sum(entry.past.size_bytes(sizes) for entry in signature(config, precision.dtype).caches)
