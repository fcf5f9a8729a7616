"""Names, types and shapes of everything that enters and leaves one step of the model.

The exported graph, the engine profiles, the bundle manifest and every runtime share these names. Symbolic dimensions:
`batch`, `tokens` (of this chunk), `capacity` (tokens that the caches can hold), `capacity_k1` and `capacity_k2`
(compressed keys that they can hold).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..checkpoint.config import SalaConfig
from ..specs import DType, TensorSpec
from .mixers import MIXERS

PAST = "past_key_values"
PRESENT = "present"


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
            spec = kind.spec(tensor, config, dtype)
            caches.append(
                CacheEntry(
                    layer=layer,
                    role=role,
                    past=TensorSpec(f"{PAST}.{layer}.{role}", spec.dtype, spec.shape),
                    present=TensorSpec(f"{PRESENT}.{layer}.{role}", spec.dtype, spec.shape),
                )
            )
    return Signature(
        token_inputs=(
            TensorSpec("input_ids", DType.INT64, ("batch", "tokens")),
            TensorSpec("past_length", DType.INT32, ("batch",)),
            TensorSpec("context_length", DType.INT32, ("batch",)),
            TensorSpec("rope_cos_sin", DType.FLOAT32, ("batch", "tokens", config.head_dim)),
        ),
        logits=TensorSpec("logits", DType.FLOAT32, ("batch", config.vocab_size)),
        caches=tuple(caches),
    )


def cache_sizes(config: SalaConfig, capacity: int, batch: int = 1) -> dict[str, int]:
    """Values of the symbolic cache dimensions for `capacity` tokens; compressed caches hold at least one key."""
    return {
        "batch": batch,
        "capacity": capacity,
        "capacity_k1": max(1, config.sparse_config.k1_count(capacity)),
        "capacity_k2": max(1, config.sparse_config.k2_count(capacity)),
    }
