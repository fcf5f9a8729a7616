"""What a manifest's graphs must take and give to be a step of its model, as the runtime in C++ requires it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ..checkpoint.config import SalaConfig
from ..specs import DType, TensorSpec
from .values import INT32_MAX, INT64_MAX, MOST_DIMENSIONS

_MOST = {"batch": 1, **dict.fromkeys(("tokens", "rows", "capacity", "capacity_k1", "capacity_k2"), INT32_MAX)}
"""The symbolic dimensions, each with the most that it may be."""
_COUNTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("dim_model_base", "max_position_embeddings", "residual_depth"),
)
_OF_CACHES = {"batch", "capacity", "capacity_k1", "capacity_k2"}
_PAST, _PRESENT = "past_key_values.", "present."


def config_problems(config: SalaConfig) -> Iterator[str]:
    """What is wrong with the numbers of a configuration, beside what its own constructor refuses."""
    sparse = config.sparse_config
    for name in _COUNTS:
        if not 1 <= getattr(config, name) <= (INT32_MAX if name == "vocab_size" else INT64_MAX):
            yield f"{name} is {getattr(config, name)}"
    for name in type(sparse).__slots__:
        if getattr(sparse, name) > (INT32_MAX if name in ("kernel_size", "kernel_stride") else INT64_MAX):
            yield f"sparse_config.{name} is {getattr(sparse, name)}"
    for name in ("rms_norm_eps", "rope_theta", "scale_emb", "scale_depth"):
        if not getattr(config, name) > 0:
            yield f"{name} is {getattr(config, name)}, expected a positive number"
    if not config.mixer_types:
        yield "mixer_types is empty"
    for token in (*config.eos_token_id, config.bos_token_id, config.pad_token_id):
        if token is not None and not 0 <= token < config.vocab_size:
            yield f"token {token} is not in the vocabulary"


def step_problems(
    config: SalaConfig, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], activations: DType
) -> Iterator[str]:
    """What is wrong with the inputs and outputs of a step. Its caches have the type of its activations, or are fp32."""
    known_inputs, known_outputs = {spec.name: spec for spec in inputs}, {spec.name: spec for spec in outputs}
    for known, listed in ((known_inputs, inputs), (known_outputs, outputs)):
        if len(known) != len(listed):
            yield "two tensors of the step have one name"
    token_inputs = _token_inputs(config)
    for expected in token_inputs:
        if known_inputs.get(expected.name) != expected:
            yield f"the step has no input {expected.name} of type {expected.dtype} and shape {list(expected.shape)}"
    expected = TensorSpec("logits", DType.FLOAT32, ("rows", config.vocab_size))
    if known_outputs.get(expected.name) != expected:
        yield f"the step has no output logits of type float32 and shape {list(expected.shape)}"
    caches = [spec for spec in inputs if spec.name.startswith(_PAST)]
    for cache in caches:
        yield from _cache_problems(cache, known_outputs, activations)
    if len(inputs) != len(caches) + len(token_inputs) or len(outputs) != len(caches) + 1:
        yield "some tensor is not part of a step"
    for spec in (*inputs, *outputs):
        yield from spec_problems(spec, _MOST)


def _token_inputs(config: SalaConfig) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec("input_ids", DType.INT64, ("batch", "tokens")),
        TensorSpec("past_length", DType.INT32, ("batch",)),
        TensorSpec("context_length", DType.INT32, ("batch",)),
        TensorSpec("rope_cos_sin", DType.FLOAT32, ("batch", "tokens", config.head_dim)),
        TensorSpec("logit_rows", DType.INT32, ("rows",)),
    )


def _cache_problems(cache: TensorSpec, outputs: dict[str, TensorSpec], activations: DType) -> Iterator[str]:
    present = TensorSpec(_PRESENT + cache.name.removeprefix(_PAST), cache.dtype, cache.shape)
    if outputs.get(present.name) != present:
        yield f"the step has no output {present.name} of the type and shape of its input {cache.name}"
    if cache.dtype not in (activations, DType.FLOAT32):
        yield f"cache {cache.name} is {cache.dtype}"
    symbols = [size for size in cache.shape if isinstance(size, str)]
    if not _OF_CACHES.issuperset(symbols):
        yield f"cache {cache.name} has an unknown dimension"
    if sum(symbol != "batch" for symbol in symbols) > 1:
        yield f"cache {cache.name} grows along two dimensions"


def spec_problems(spec: TensorSpec, most: dict[str, int]) -> Iterator[str]:
    """What is wrong with the sizes of a tensor, whose symbolic dimensions may be as large as `most` says."""
    if len(spec.shape) > MOST_DIMENSIONS:
        yield f"{spec.name} has more than {MOST_DIMENSIONS} dimensions"
    elif any(size not in most if isinstance(size, str) else not 1 <= size <= INT64_MAX for size in spec.shape):
        yield f"{spec.name} has a dimension that is no size: {list(spec.shape)}"
    elif max(math.prod(spec.bound(most)), math.prod(spec.bound(most)) * spec.dtype.bits // 8) > INT64_MAX:
        yield f"{spec.name} exceeds memory"
