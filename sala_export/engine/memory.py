"""Device memory of an engine and its session, by part: predicted before the build, exact after it.

The account does not include the `reserve_bytes` of a recipe, which are left to others and differ from GPU to GPU.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from ..errors import RequestError, ShapeError
from ..model.signature import BATCH, LOGITS, PAST, ROWS, TOKENS
from ..ops.common.block_scales import quantized_bytes
from ..specs import DType, TensorSpec, format_bytes, format_tokens
from .graph import EngineGraph, OperatorNode
from .profiles import PAGE_BYTES, ProfileName, largest_sizes
from .recipe import GpuRecipe
from .request import EngineRequest

_CONTEXT_STEP = 1024

PARTIAL_SUM_BYTES = 8_192_000
"""Scratch of a matrix product that splits its sum because it has few rows: 8000 KiB in every engine looked at."""

NO_WORKSPACES: Mapping[str, int] = MappingProxyType({})

_BLOCK_SCALED = {DType.FLOAT8_E4M3FN, DType.INT32}
"""Types of weight inputs whose products are all of mxfp8: codes, and words of scales."""

_CACHE_PARTS = {
    "key": "key_value_bytes",
    "value": "key_value_bytes",
    "k1": "compressed_key_bytes",
    "k2": "compressed_key_bytes",
    "state": "state_bytes",
}
"""Part of the account by the last word of a `past_key_values.{layer}.{word}` input."""

_GROWING_PARTS = ("key_value_bytes", "compressed_key_bytes")


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryUsage:
    """Bytes on the GPU while `max_batch` sessions run that together hold as many tokens as the largest context.

    With `max_batch` 1 that is one session of the largest context.
    """

    weights_bytes: int
    """Weights, both inputs and constants of the engine."""
    key_value_bytes: int
    compressed_key_bytes: int
    state_bytes: int
    """Recurrent states of the lightning layers. Those of sessions that draw together are there twice."""
    activation_bytes: int
    """Scratch of the larger profile, because a session runs one profile at a time."""
    io_bytes: int
    """Token ids, lengths, RoPE rows, and the logits of a decode step.

    Those of further tokens of a chunk, 287 KiB each for 9B, take their memory when they are first asked for.
    """

    @property
    def total_bytes(self) -> int:
        return sum(self.parts().values())

    def parts(self) -> dict[str, int]:
        """Bytes by the name of the part, in the order of the fields."""
        return {name.removesuffix("_bytes"): getattr(self, name) for name in self.__slots__}


def predict_memory(
    graph: EngineGraph, request: EngineRequest, workspaces: Mapping[str, int] = NO_WORKSPACES
) -> MemoryUsage:
    """Predict the account before the build. Activations are estimated, everything else follows from the graph.

    Caches of a session count once, because `present.*` is bound to the memory of `past_key_values.*`. A session takes
    the memory of the tokens that it holds, in whole pages. So further sessions take no more than their states and, in
    every cache and head, a page of which they fill a part.

    Args: `workspaces`, scratch bytes of the larger call of each operator in both profiles, by ONNX type
        (`kernel_support.operator_workspaces`); an operator without an entry is taken to need none.
    Raises: ShapeError for a cache that the account does not know.
    """
    prefill, decode = (largest_sizes(graph, request, profile) for profile in ProfileName)
    others = request.max_batch - 1
    parts = dict.fromkeys((*_CACHE_PARTS.values(), "io_bytes"), 0)
    for spec in (*graph.inputs, *(spec for spec in graph.outputs if spec.name == LOGITS)):
        part = _part(graph, spec)
        if part in _GROWING_PARTS:
            parts[part] += spec.size_bytes(prefill) + others * _heads(spec) * PAGE_BYTES
        else:
            profiles = (decode,) if spec.name == LOGITS else (prefill, decode)
            parts[part] += max(spec.size_bytes(profile) for profile in profiles)
    if others:
        # Each session has its own, and a place in the batch.
        parts["state_bytes"] *= 2
    calls = [(sizes[BATCH] * sizes[TOKENS], sizes[ROWS]) for sizes in (prefill, decode)]
    return MemoryUsage(
        weights_bytes=graph.weights_bytes,
        activation_bytes=max(estimate_activations(graph, tokens, rows, workspaces) for tokens, rows in calls),
        **parts,
    )


def estimate_activations(
    graph: EngineGraph, tokens: int, rows: int, workspaces: Mapping[str, int] = NO_WORKSPACES
) -> int:
    """Estimate from above the scratch memory of a call that gives logits of `rows` of its tokens, in bytes.

    Moments of a layer that can be the fullest, counted in elements per token:

    * in the MLP, `silu(gate) * up`: `gate_up` and the product, half as wide, and three hidden rows. TensorRT needs two
      of these, and keeps the place of a third where a lightning layer comes before;
    * in a mixer: two hidden rows, the packed projection, the rows that the operator gives, and its workspaces;
    * in the head: the stream, and for each of `rows` a hidden row and its product with the head;
    * in a mixer whose packed projection is quantised in part: three hidden rows and twice the projection, to
      concatenate what its products give. The same in an MLP whose gate and up are products of their own.

    In mxfp8 the rows of a layer have codes beside them: 33 bytes for each 32 elements of the operator's rows and of a
    hidden row. Where gate, up and down are all quantised, the product of gate and up is codes alone.

    On top of the fullest comes what a matrix product of few rows takes for its partial sums. It comes twice in a
    quantised graph, whose products run side by side. Measured with TensorRT for RTX 1.7.1.116 over layers of 9B sizes
    and of the tiny preset, chunks of 64 to 16384 tokens, in every precision: 122,880 bytes per token in 9B, which is
    the first moment to the byte, 118,784 to 125,190 in quantised ones, 99,840 in mxfp8, and never more than this
    estimate.
    """
    element, hidden = graph.activation_dtype.bytes, graph.hidden_size
    is_quantized, widest = graph.quantized_parameters > 0, graph.widest_projection
    mlp = [spec.dtype for spec in graph.weights if ".mlp." in spec.name]
    gated = quantized_bytes(widest // 2) if mlp and set(mlp) == _BLOCK_SCALED else widest // 2 * element
    has_codes = any(spec.dtype is DType.INT32 for spec in graph.weights)
    moments = [
        ((3 * hidden + widest) * element + gated) * tokens,
        (hidden * tokens + (hidden + graph.vocab_size) * rows) * element,
    ]
    for spec in graph.weights:
        # A gate or up of its own: what both products give, and the same side by side.
        if spec.name.endswith((".mlp.gate_proj.weight", ".mlp.up_proj.weight")):
            moments.append((3 * hidden + 4 * int(spec.shape[0])) * element * tokens)
    for node in graph.operators:
        width = mixer_width(node)
        codes = quantized_bytes(hidden + attention_width(node)) if has_codes else 0
        moments.append(((2 * hidden + width) * element + codes) * tokens + workspaces.get(node.op_type, 0))
        if is_quantized:
            moments.append(((3 * hidden + 2 * (width - attention_width(node))) * element + codes) * tokens)
    return max(moments) + PARTIAL_SUM_BYTES * (2 if is_quantized else 1)


def mixer_width(node: OperatorNode) -> int:
    """Elements per token of the packed projection that an operator reads and of the rows that it writes.

    Both mixers pack q, k, v and the gate. A sparse layer has fewer heads of keys and values.
    """
    heads, dim = int(node.attributes["num_heads"]), int(node.attributes["head_dim"])
    kv_heads = int(node.attributes.get("num_kv_heads", heads))
    return (3 * heads + 2 * kv_heads) * dim


def attention_width(node: OperatorNode) -> int:
    """Elements per token of the rows that an operator writes."""
    return int(node.attributes["num_heads"]) * int(node.attributes["head_dim"])


def fits(memory: MemoryUsage, recipe: GpuRecipe) -> bool:
    """True if a GPU holds all of the account beside what it leaves to others."""
    return memory.total_bytes + recipe.reserve_bytes <= recipe.memory_bytes


def check_fits(graph: EngineGraph, request: EngineRequest, memory: MemoryUsage) -> None:
    """Refuse a target that cannot hold the engine.

    A single GPU must hold the context of the request, each of several at least some context.

    Args: `memory` is the account of `request`. How it shrinks with the context follows from the graph.
    Raises: RequestError naming the GPU, the parts and what to do: the largest context that fits, a multiple of 1K, if
        there is one.
    """
    gpus = request.target.gpus
    if len(gpus) == 1 and not fits(memory, gpus[0]):
        context = largest_context(graph, request, memory, gpus[0])
        if context is not None:
            needs = _needs(request, memory, gpus[0])
            raise RequestError(f"{needs}: the largest that fits is --max-context {format_tokens(context)}")
    for recipe in gpus:
        if largest_context(graph, request, memory, recipe) is None:
            others = ",".join(other.name for other in gpus if other != recipe)
            leave = f"leave it out with --gpu {others}" if others else "choose another --gpu"
            needs = _needs(request, memory, recipe)
            lower = ", ".join(["--prefill-chunk"] + ["--max-batch"] * (request.max_batch > 1))
            smaller = "" if request.precision.is_quantized else ", or take --precision int8"
            raise RequestError(f"{needs}: no context fits; lower {lower} or --layers, or {leave}{smaller}")


def contexts(graph: EngineGraph, request: EngineRequest, memory: MemoryUsage) -> tuple[tuple[GpuRecipe, int], ...]:
    """The longest context of the engine that fits each GPU of the target, in tokens.

    It is that of the request, or a multiple of 1K where that does not fit. Args: as `check_fits`, which has passed.
    """
    found = ((recipe, largest_context(graph, request, memory, recipe)) for recipe in request.target.gpus)
    return tuple((recipe, context) for recipe, context in found if context is not None)


def largest_context(
    graph: EngineGraph, request: EngineRequest, memory: MemoryUsage, recipe: GpuRecipe, limit: int | None = None
) -> int | None:
    """The longest context, at least the chunk, whose caches fit a GPU beside the other parts of `memory`, in tokens.

    It is `limit`, by default the context of the request, or a smaller multiple of 1K. None if no context fits.
    """
    limit = limit or request.max_context

    def holds(context: int) -> bool:
        caches = predict_memory(graph, replace(request, max_context=context))
        smaller = replace(
            memory, key_value_bytes=caches.key_value_bytes, compressed_key_bytes=caches.compressed_key_bytes
        )
        return fits(smaller, recipe)

    if holds(limit):
        return limit
    smallest = -(-request.prefill_chunk // _CONTEXT_STEP) * _CONTEXT_STEP
    contexts = range(smallest, limit + 1, _CONTEXT_STEP)
    held = bisect(contexts, False, key=lambda context: not holds(context))
    return contexts[held - 1] if held else None


def _needs(request: EngineRequest, memory: MemoryUsage, recipe: GpuRecipe) -> str:
    parts = {**memory.parts(), "reserve": recipe.reserve_bytes}
    told = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)
    needed = sum(parts.values())
    excess = needed - recipe.memory_bytes
    # Two figures that are rounded may read alike.
    beyond = f", {format_bytes(excess)} too few" if format_bytes(needed) == format_bytes(recipe.memory_bytes) else ""
    batch = f" with --max-batch {request.max_batch}" if request.max_batch > 1 else ""
    return (
        f"--max-context {format_tokens(request.max_context)}{batch} needs {format_bytes(needed)} and {recipe.gpu} has "
        f"{format_bytes(recipe.memory_bytes)}{beyond} ({told})"
    )


def _heads(spec: TensorSpec) -> int:
    """Of a cache [batch, heads, rows, head_dim]: the rows of each head lie on pages of their own."""
    return int(spec.shape[1])


def _part(graph: EngineGraph, spec: TensorSpec) -> str:
    if not spec.name.startswith(PAST):
        return "io_bytes"
    word = spec.name.rpartition(".")[2]
    if word not in _CACHE_PARTS:
        raise ShapeError(f"{graph.path}: unknown cache {spec.name}, known are {', '.join(_CACHE_PARTS)}")
    return _CACHE_PARTS[word]
