"""Counts what a model computes and moves, from its configuration alone.

A phase is one kind of kernel over a whole prompt, or over one token of decoding. Operations count two per multiply-add.
Batch B is 1 throughout, and a prompt has T tokens.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from ..checkpoint.config import Mixer, SalaConfig
from ..checkpoint.keymap import GATE_ROLES, layer_packs, weights
from ..checkpoint.quantization import QUANTIZABLE_ROLES, Quantization
from ..model.signature import cache_sizes, signature
from ..ops.infllmv2_attention.cost import CODED_KEYS, scored_after_bounds
from ..specs import DType, Precision


class Kind(StrEnum):
    """Kinds of phases, by what bounds them."""

    GEMM = "matrix products"
    DENSE_ATTENTION = "dense attention"
    SELECTION = "InfLLM-v2 selection"
    BOUNDS = "InfLLM-v2 bounds"
    SURVIVORS = "InfLLM-v2 exact scores after bounds"
    SPARSE_ATTENTION = "InfLLM-v2 attention"
    LIGHTNING = "Lightning"
    ELEMENTWISE = "norms, gates and sums"


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """Operations of the tensor cores and bytes of device memory."""

    kind: Kind
    operations: float
    bytes: float
    quantized: bool = False
    """True for products of quantised weights, which run at the rate of their precision.

    Of all else, `Kind.BOUNDS` runs in int8, and the rest in 16 bits.
    """


@dataclass(frozen=True, slots=True)
class Sala:
    """MiniCPM-SALA of any size. docs/model.md says what each mixer computes."""

    config: SalaConfig
    quantizes_gates: bool = False
    """The gates of the mixers are quantised where the projections are."""

    @classmethod
    def in_precision(cls, config: SalaConfig, precision: Precision, quantization: Quantization | None = None) -> Sala:
        """The model as a checkpoint of this precision holds it.

        Args: `quantization` is that of a quantised checkpoint. None stands for `Quantization.default`.
        """
        if not precision.is_quantized:
            return cls(config)
        quantization = quantization or Quantization.default(precision)
        gates = [weight.name for weight in weights(config) if weight.role in GATE_ROLES]
        return cls(config, quantizes_gates=all(quantization.covers(name) for name in gates))

    @property
    def name(self) -> str:
        return "SALA"

    @property
    def _projections(self) -> int:
        """Weights that every token is multiplied with and that are quantised, if any is."""
        sizes = _sizes(self.config)
        return sizes.projections + (sizes.gates if self.quantizes_gates else 0)

    @property
    def _gates(self) -> int:
        """Weights that every token is multiplied with in 16 bits."""
        return 0 if self.quantizes_gates else _sizes(self.config).gates

    @property
    def _head(self) -> int:
        return self.config.vocab_size * self.config.hidden_size

    def weights_bytes(self, weight_bits: float) -> float:
        """Bytes of all weights. Quantised projections take `weight_bits` for each weight, all others 16."""
        others = _sizes(self.config).weights - self._projections
        return self._projections * weight_bits / 8 + 2 * others

    def cache_bytes(self, tokens: int, dtype: DType = DType.BFLOAT16) -> float:
        """Bytes of the caches of a context of this many tokens. `dtype` is that of keys and values."""
        sizes = cache_sizes(self.config, tokens)
        return sum(entry.past.size_bytes(sizes) for entry in signature(self.config, dtype).caches)

    def prefill(self, tokens: int, chunk: int, weight_bits: float, *, bounded_blocks: int) -> Sequence[Phase]:
        """Phases of a prompt in chunks, at batch 1.

        Args: `bounded_blocks`, candidate blocks of a token from which their scores are bounded in int8; 0 for never.
        """
        calls = math.ceil(tokens / chunk)
        return (
            Phase(
                kind=Kind.GEMM,
                operations=2.0 * self._projections * tokens,
                bytes=calls * self._projections * weight_bits / 8,
                quantized=weight_bits < 16,
            ),
            Phase(
                kind=Kind.GEMM,
                operations=2.0 * self._gates * tokens + 2.0 * self._head * calls,
                bytes=2.0 * calls * (self._gates + self._head),
            ),
            *self._of_operators(
                {Mixer.SPARSE: partial(_sparse_prefill, bounded_blocks), Mixer.LIGHTNING: _lightning_prefill}, tokens
            ),
            Phase(
                kind=Kind.ELEMENTWISE,
                operations=0.0,
                bytes=float(tokens * self._elementwise_bytes(quantized=weight_bits < 16)),
            ),
        )

    def decode(self, context: int, weight_bits: float) -> Sequence[Phase]:
        """Phases of one token after `context` others, at batch 1."""
        return (
            _decode_products(self._projections, self._gates + self._head, weight_bits),
            *self._of_operators(_DECODE, context),
        )

    def _of_operators(self, costs: Mapping[Mixer, OperatorCost], tokens: int) -> tuple[Phase, ...]:
        layers = Counter(self.config.mixer_types)
        return tuple(
            phase for mixer in Mixer if mixer in layers for phase in costs[mixer](self.config, layers[mixer], tokens)
        )

    def _elementwise_bytes(self, *, quantized: bool) -> int:
        """Per token, between matrix products and operators, 16 bits per element.

        In each layer: two norms read and write a row, two sums read two rows and write one, `silu(gate) * up` reads
        both and writes their product. A quantised layer reads and writes its packed projection once more to bring both
        of its products together, unless the gate is a part of the one product. It reads the operator's rows to write
        them in at most half the bits; norms and `silu(gate) * up` write theirs so themselves.
        """
        config, layers = self.config, self.config.num_hidden_layers
        found = 2 * (10 * config.hidden_size + 3 * config.intermediate_size) * layers
        if quantized:
            found += 3 * config.num_attention_heads * config.head_dim * layers
            found += 0 if self.quantizes_gates else 2 * 2 * _sizes(config).packed_rows
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sizes:
    """Sums over the weights of a model."""

    weights: int
    projections: int
    gates: int
    packed_rows: int
    """Of the packed projections of the mixers."""


@functools.lru_cache(maxsize=8)
def _sizes(config: SalaConfig) -> _Sizes:
    """A plan asks for them in each step of its search, and the list of weights is long."""
    found = weights(config)
    rows = {weight.name: weight.shape[0] for weight in found}
    layers = range(config.num_hidden_layers)
    return _Sizes(
        weights=sum(weight.elements for weight in found),
        projections=sum(weight.elements for weight in found if weight.role in QUANTIZABLE_ROLES),
        gates=sum(weight.elements for weight in found if weight.role in GATE_ROLES),
        packed_rows=sum(rows[name] for layer in layers for name in layer_packs(config, layer)[0]),
    )


OperatorCost = Callable[[SalaConfig, int, int], tuple[Phase, ...]]
"""The phases of so many layers of one mixer, over a prompt of so many tokens or for one token behind so many."""


def _sparse_prefill(bounded_blocks: int, config: SalaConfig, layers: int, tokens: int) -> tuple[Phase, ...]:
    """The operator also reads its packed projection and writes its rows.

    Tokens with `bounded_blocks` candidates or more, unless it is 0, bound what k1 says of them.
    """
    sparse, width = config.sparse_config, config.num_attention_heads * config.head_dim
    is_sparse = sparse.dense_len < 0 or tokens >= sparse.dense_len
    keys = _sum_of_keys(tokens, sparse.taken_blocks * sparse.block_size if is_sparse else tokens)
    scores = bounded = 0
    bounds: tuple[Phase, ...] = ()
    if is_sparse:
        forced = sparse.init_blocks + sparse.window_size // sparse.block_size
        has_bounds = bounded_blocks > 0 and tokens <= sparse.kernel_stride * CODED_KEYS
        first = min(tokens, (forced + bounded_blocks) * sparse.block_size) if has_bounds else tokens
        scores = _sum_of_windows(first, sparse.kernel_size, sparse.kernel_stride)
        bounded = _sum_of_windows(tokens, sparse.kernel_size, sparse.kernel_stride) - scores
        scores += _sum_of_windows(tokens, 4 * sparse.kernel_size, 4 * sparse.kernel_stride)
    if bounded:
        blocks = scored_after_bounds(sparse.taken_blocks - forced - 1)
        exact = (tokens - first) * blocks * (sparse.block_size // sparse.kernel_stride + 1)
        bounds = (
            Phase(kind=Kind.BOUNDS, operations=2.0 * width * bounded * layers, bytes=0.0),
            Phase(kind=Kind.SURVIVORS, operations=2.0 * width * exact * layers, bytes=0.0),
        )
    moved = 3 * width + 2 * config.num_key_value_heads * config.head_dim
    return (
        Phase(kind=Kind.SELECTION, operations=2.0 * width * scores * layers, bytes=0.0),
        *bounds,
        Phase(kind=Kind.SPARSE_ATTENTION, operations=4.0 * width * keys * layers, bytes=0.0),
        Phase(kind=Kind.ELEMENTWISE, operations=0.0, bytes=2.0 * moved * layers * tokens),
    )


def _sparse_decode(config: SalaConfig, layers: int, context: int) -> tuple[Phase, ...]:
    sparse, row = config.sparse_config, 2 * config.num_key_value_heads * config.head_dim * layers
    is_sparse = sparse.dense_len < 0 or context >= sparse.dense_len
    taken = min(context, sparse.taken_blocks * sparse.block_size) if is_sparse else context
    compressed = sparse.k1_count(context) + sparse.k2_count(context) if is_sparse else 0
    return (
        Phase(kind=Kind.SELECTION, operations=0.0, bytes=float(row * compressed)),
        Phase(kind=Kind.SPARSE_ATTENTION, operations=0.0, bytes=float(2 * row * taken)),
    )


def _lightning_prefill(config: SalaConfig, layers: int, tokens: int) -> tuple[Phase, ...]:
    """The chunk form over tiles of 64 tokens: the state in and out, and two products within the tile."""
    rows, dim = layers * config.num_attention_heads * tokens, config.head_dim
    return (Phase(kind=Kind.LIGHTNING, operations=rows * 4.0 * (dim + 64) * dim, bytes=rows * 8.0 * dim),)


def _lightning_decode(config: SalaConfig, layers: int, context: int) -> tuple[Phase, ...]:
    """The state is read and written, whatever the context."""
    state_bytes = 4.0 * layers * config.num_attention_heads * config.head_dim**2
    return (Phase(kind=Kind.LIGHTNING, operations=0.0, bytes=2.0 * state_bytes),)


_DECODE: Mapping[Mixer, OperatorCost] = {Mixer.SPARSE: _sparse_decode, Mixer.LIGHTNING: _lightning_decode}


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """A Transformer with full causal attention in every layer and a gated MLP."""

    name: str
    layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int

    @property
    def _projections(self) -> int:
        width, kv_width = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return self.layers * self.hidden_size * (2 * width + 2 * kv_width + 3 * self.intermediate_size)

    @property
    def _head(self) -> int:
        return self.vocab_size * self.hidden_size

    def weights_bytes(self, weight_bits: float) -> float:
        return self._projections * weight_bits / 8 + 2 * 2 * self._head

    def cache_bytes(self, tokens: int) -> float:
        return 2.0 * 2 * tokens * self.layers * self.num_key_value_heads * self.head_dim

    def prefill(self, tokens: int, chunk: int, weight_bits: float) -> Sequence[Phase]:
        calls = math.ceil(tokens / chunk)
        keys = _sum_of_keys(tokens, tokens) * self.layers
        rows = self.layers * (10 * self.hidden_size + 3 * self.intermediate_size)
        return (
            Phase(
                kind=Kind.GEMM,
                operations=2.0 * self._projections * tokens + 2.0 * self._head * calls,
                bytes=calls * (self._projections * weight_bits / 8 + 2 * self._head),
            ),
            Phase(
                kind=Kind.DENSE_ATTENTION, operations=4.0 * self.num_attention_heads * self.head_dim * keys, bytes=0.0
            ),
            Phase(kind=Kind.ELEMENTWISE, operations=0.0, bytes=2.0 * tokens * rows),
        )

    def decode(self, context: int, weight_bits: float) -> Sequence[Phase]:
        return (
            _decode_products(self._projections, self._head, weight_bits),
            Phase(kind=Kind.DENSE_ATTENTION, operations=0.0, bytes=self.cache_bytes(context)),
        )


def _decode_products(projections: int, others: int, weight_bits: float) -> Phase:
    return Phase(
        kind=Kind.GEMM, operations=2.0 * (projections + others), bytes=projections * weight_bits / 8 + 2.0 * others
    )


def _sum_of_keys(tokens: int, most: int) -> int:
    """Sum of `min(t + 1, most)` over the rows t of a prompt."""
    full = max(0, tokens - most)
    first = tokens - full
    return first * (first + 1) // 2 + full * most


def _sum_of_windows(tokens: int, size: int, stride: int) -> int:
    """Sum over the rows t of a prompt of the windows of `size` keys, every `stride`, that end at or before t."""
    rows = max(0, tokens - size + 1)
    whole, rest = divmod(rows, stride)
    return stride * whole * (whole + 1) // 2 + rest * (whole + 1)
