"""Names, types and shapes of everything that enters and leaves one step of the model.

The exported graph, the engine profiles, the bundle manifest and every runtime share these names. In C++ they stand in
`runtime/include/sala/step_names.h`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint.config import SalaConfig
from ..ops.common.contract import ACTIVATION, Tensor
from ..ops.common.expr import evaluate
from ..specs import DType, TensorSpec
from .mixers import MIXERS, MixerKind

INPUT_IDS = "input_ids"
PAST_LENGTH = "past_length"
CONTEXT_LENGTH = "context_length"
ROPE_COS_SIN = "rope_cos_sin"
LOGIT_ROWS = "logit_rows"
"""Rows whose logits a step gives: row b * T + t is token t of sequence b."""
TOKEN_INPUTS = (INPUT_IDS, PAST_LENGTH, CONTEXT_LENGTH, ROPE_COS_SIN, LOGIT_ROWS)
"""Inputs of a step besides its caches, in graph order."""
LOGITS = "logits"
PAST = "past_key_values."
"""Prefix of a cache as it enters a step: `past_key_values.{layer}.{role}`."""
PRESENT = "present."
"""Prefix of a cache as it leaves a step."""

BATCH = "batch"
TOKENS = "tokens"
"""Tokens of the step."""
ROWS = "rows"
"""Rows whose logits the step gives."""
CAPACITY = "capacity"
"""Tokens that the caches can hold."""
CAPACITY_K1 = "capacity_k1"
CAPACITY_K2 = "capacity_k2"
"""Compressed keys that the caches can hold."""
SYMBOLIC_DIMENSIONS = (BATCH, TOKENS, ROWS, CAPACITY, CAPACITY_K1, CAPACITY_K2)
MAX_LOGIT_ROWS = 256
"""Most rows whose logits one step gives, where a chunk has as many."""
_OF_OPERATORS = {"B": BATCH, "T": TOKENS, "C": CAPACITY, "C1": CAPACITY_K1, "C2": CAPACITY_K2}
"""Symbolic dimensions by the operators' names for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheEntry:
    """One tensor of a layer's cache, as it enters and as it leaves a step; both may share one buffer at run time."""

    layer: int
    role: str
    """`state` for lightning layers; `key`, `value`, `k1` or `k2` for sparse ones."""
    past: TensorSpec
    present: TensorSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Signature:
    """Inputs and outputs of one step, in graph order."""

    token_inputs: tuple[TensorSpec, ...]
    logits: TensorSpec
    caches: tuple[CacheEntry, ...]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return (*self.token_inputs, *(entry.past for entry in self.caches))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return (self.logits, *(entry.present for entry in self.caches))


def signature(config: SalaConfig, dtype: DType) -> Signature:
    """The step signature of a model whose activations have type `dtype`."""
    caches: list[CacheEntry] = []
    for layer, mixer in enumerate(config.mixer_types):
        kind = MIXERS[mixer]
        for role, tensor in zip(kind.cache_roles, kind.caches, strict=True):
            spec = operator_tensor(kind, tensor, config, dtype)
            caches.append(
                CacheEntry(
                    layer=layer,
                    role=role,
                    past=TensorSpec(f"{PAST}{layer}.{role}", spec.dtype, spec.shape),
                    present=TensorSpec(f"{PRESENT}{layer}.{role}", spec.dtype, spec.shape),
                )
            )
    return Signature(
        token_inputs=(
            TensorSpec(INPUT_IDS, DType.INT64, (BATCH, TOKENS)),
            TensorSpec(PAST_LENGTH, DType.INT32, (BATCH,)),
            TensorSpec(CONTEXT_LENGTH, DType.INT32, (BATCH,)),
            TensorSpec(ROPE_COS_SIN, DType.FLOAT32, (BATCH, TOKENS, config.head_dim)),
            TensorSpec(LOGIT_ROWS, DType.INT32, (ROWS,)),
        ),
        logits=TensorSpec(LOGITS, DType.FLOAT32, (ROWS, config.vocab_size)),
        caches=tuple(caches),
    )


def operator_tensor(kind: MixerKind, tensor: Tensor, config: SalaConfig, dtype: DType) -> TensorSpec:
    """A tensor of a mixer's operator in a model whose activations have type `dtype`."""
    sizes = kind.sizes(config)
    shape = tuple(_OF_OPERATORS.get(extent) or evaluate(extent, sizes) for extent in tensor.shape)
    return TensorSpec(tensor.name, dtype if tensor.dtype == ACTIVATION else DType(tensor.dtype), shape)


def cache_sizes(config: SalaConfig, capacity: int, batch: int = 1) -> dict[str, int]:
    """Values of the symbolic cache dimensions for `capacity` tokens; compressed caches hold at least one key."""
    return {
        BATCH: batch,
        CAPACITY: capacity,
        CAPACITY_K1: max(1, config.sparse_config.k1_count(capacity)),
        CAPACITY_K2: max(1, config.sparse_config.k2_count(capacity)),
    }
