"""Predicts what a build and its engine will take, before anything is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..building.planned_graph import planned_graph, planned_memory
from ..checkpoint.config import SalaConfig
from ..checkpoint.quantization import Quantization
from ..engine.graph import EngineGraph
from ..engine.host import available_host_bytes, host_bytes_needed, plan_bytes
from ..engine.memory import MemoryUsage, fits, largest_context
from ..engine.recipe import GpuRecipe, load_recipe
from ..engine.request import EngineRequest
from ..errors import RequestError
from ..specs import Precision, format_bytes, format_tokens
from .published import BASELINES, CONTEXTS, GENERATED_TOKENS, TTFT_SECONDS, published_seconds
from .roofline import WEIGHT_BITS, Estimate, bounded_blocks, time_of_decode, time_of_prefill
from .work import Dense, Sala

_LARGEST_CONTEXT = 64 << 20

_START_SECONDS = 4.0
"""Starting, and writing the three graphs."""
_SECONDS_PER_LAYER, _SECONDS_PER_QUANTIZED_LAYER = 0.35, 0.6
_SECONDS_PER_CONSTANT_BYTE: Mapping[Precision, float] = {Precision.INT4: 24e-9, Precision.NVFP4: 15e-9}
"""Of TensorRT. Measured with TensorRT for RTX 1.7.1.116 on two quiet cores of an AMD EPYC, whole builds of 9B: 17 s in
bf16 and 24 s in int8, each for three compute capabilities; 128 s in int4, with 4.30 GB of constants, and 31 s in nvfp4,
with 0.52 GB."""
_HASHED_BYTES_PER_SECOND = 1.3e9
"""Of SHA-256 on one core, which runs beside TensorRT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextRow:
    """Prediction for one length of prompt, at batch 1."""

    context: int
    memory_bytes: float
    """Bytes of weights, caches, what else an engine takes, and what the GPU reserves."""
    fits: bool
    prefill: Estimate
    decode: Estimate
    """Time of one token after the prompt."""
    published_prefill: float | None
    """Seconds of another implementation. None if nothing is published for this GPU and model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildAccount:
    """Resources that a build takes on this machine. All but the available memory is predicted."""

    host_bytes: int
    """Peak resident memory in bytes."""
    available_host_bytes: int
    plan_bytes: int
    scratch_bytes: int
    """Disk on top of the plan while TensorRT builds: its constants in the form of ONNX."""
    copied_bytes_unless_linked: int
    """Disk on top of both if the weight files are copied, neither shared nor hard-linked."""
    seconds_predicted: float
    """Time on two cores, without copies of the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedFigure:
    """A published figure beside this model of time."""

    gpu: str
    context: int
    published: float
    estimate: Estimate

    @property
    def ratio(self) -> float:
        """Predicted over published time. Below 1, this engine is predicted to be faster."""
        return self.estimate.predicted / self.published


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuPlan:
    """Plan of the engine on one GPU of its target."""

    recipe: GpuRecipe
    fits: bool
    """True if the context of the request fits this GPU."""
    largest_context: int | None
    """The longest context that an engine could have here, whatever the request. None if no context fits."""
    rows: tuple[ContextRow, ...]
    baseline_rows: tuple[ContextRow, ...]
    """The same lengths on the dense model, with bf16 weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything that `sala-export plan` shows."""

    request: EngineRequest
    memory: MemoryUsage
    """Memory of the engine at the context of the request, without what each GPU reserves."""
    gpus: tuple[GpuPlan, ...]
    baseline: Dense | None
    build: BuildAccount
    checks: tuple[PublishedFigure, ...]


def make_plan(
    config: SalaConfig,
    request: EngineRequest,
    compare: str | None,
    is_published: bool,
    quantization: Quantization | None = None,
) -> Plan:
    """Plan an engine of `request` for the model `config`.

    Args: `compare` names a baseline of `BASELINES`. `is_published` says that the configuration is that of the published
        model, so that published figures apply. `quantization` is that of a quantised checkpoint in the precision of
        the request.
    Raises: RequestError for an unknown baseline.
    """
    if compare is not None and compare.lower() not in BASELINES:
        raise RequestError(f"--compare {compare}: unknown model, known are {', '.join(BASELINES)}")
    graph = planned_graph(config, request.precision, quantization)
    model = Sala.in_precision(config, request.precision, quantization)
    memory = {
        context: planned_memory(graph, config, replace(request, max_context=context)) for context in _contexts(request)
    }
    baseline = BASELINES[compare.lower()] if compare else None
    return Plan(
        request=request,
        memory=memory[request.max_context],
        gpus=tuple(
            GpuPlan(
                recipe=recipe,
                fits=fits(memory[request.max_context], recipe),
                largest_context=largest_context(
                    graph, request, memory[request.max_context], recipe, limit=_LARGEST_CONTEXT
                ),
                rows=tuple(
                    _row(model, request, recipe, context, needed, is_published) for context, needed in memory.items()
                ),
                baseline_rows=tuple(baseline_row(baseline, recipe, context) for context in CONTEXTS)
                if baseline
                else (),
            )
            for recipe in request.target.gpus
        ),
        baseline=baseline,
        build=account_of_build(graph, request.precision),
        checks=published_checks(config) if is_published else (),
    )


def _contexts(request: EngineRequest) -> Sequence[int]:
    """The published lengths, and the one asked for, that hold at least one chunk."""
    return sorted({request.max_context, *(c for c in CONTEXTS if c >= request.prefill_chunk)})


def _row(
    model: Sala, request: EngineRequest, recipe: GpuRecipe, context: int, memory: MemoryUsage, is_published: bool
) -> ContextRow:
    bits = WEIGHT_BITS[request.precision]
    published = published_seconds(recipe.name, request.precision) if is_published and context in CONTEXTS else None
    phases = model.prefill(context, request.prefill_chunk, bits, bounded_blocks=bounded_blocks(recipe))
    return ContextRow(
        context=context,
        memory_bytes=memory.total_bytes + recipe.reserve_bytes,
        fits=fits(memory, recipe),
        prefill=time_of_prefill(phases, recipe, request.precision),
        decode=time_of_decode(model.decode(context, bits), model.config.num_hidden_layers, recipe),
        published_prefill=published.sala[CONTEXTS.index(context)] if published else None,
    )


def baseline_row(model: Dense, recipe: GpuRecipe, context: int, weights: str = "bf16", chunk: int = 8192) -> ContextRow:
    """Plan a dense model on a GPU.

    Its memory is its weights, its cache for the prompt and the published runs' 1K answer, what the recipe leaves to
    others, and as activations two rows and the MLP of one chunk."""
    bits = WEIGHT_BITS[weights]
    activations = 2 * chunk * (2 * model.hidden_size + 3 * model.intermediate_size)
    memory = model.weights_bytes(bits) + model.cache_bytes(context + GENERATED_TOKENS) + activations
    memory += recipe.reserve_bytes
    row = published_seconds(recipe.name, weights)
    return ContextRow(
        context=context,
        memory_bytes=memory,
        fits=memory <= recipe.memory_bytes,
        prefill=time_of_prefill(model.prefill(context, chunk, bits), recipe, weights),
        decode=time_of_decode(model.decode(context, bits), model.layers, recipe),
        published_prefill=row.qwen3_8b[CONTEXTS.index(context)] if row and context in CONTEXTS else None,
    )


def published_checks(config: SalaConfig) -> tuple[PublishedFigure, ...]:
    """The ten published bf16 figures beside the predictions for the same GPU."""

    def estimate(recipe: GpuRecipe, context: int) -> Estimate:
        phases = Sala(config).prefill(context, 8192, WEIGHT_BITS["bf16"], bounded_blocks=bounded_blocks(recipe))
        return time_of_prefill(phases, recipe, "bf16")

    return tuple(
        PublishedFigure(
            gpu=row.recipe, context=context, published=published, estimate=estimate(load_recipe(row.recipe), context)
        )
        for row in TTFT_SECONDS
        if row.weights == "bf16"
        for context, published in zip(CONTEXTS, row.sala, strict=True)
    )


def account_of_build(graph: EngineGraph, precision: Precision) -> BuildAccount:
    """Predict what it takes on this machine to build the engine of a graph and the bundle around it."""
    per_layer = _SECONDS_PER_QUANTIZED_LAYER if precision.is_quantized else _SECONDS_PER_LAYER
    tensorrt = per_layer * len(graph.operators)
    tensorrt += _SECONDS_PER_CONSTANT_BYTE.get(precision, 0.0) * graph.constant_bytes
    hashing = graph.weights_bytes / _HASHED_BYTES_PER_SECOND
    return BuildAccount(
        host_bytes=host_bytes_needed(graph.constant_bytes),
        available_host_bytes=available_host_bytes(),
        plan_bytes=plan_bytes(graph),
        scratch_bytes=graph.constant_bytes,
        copied_bytes_unless_linked=graph.weights_bytes,
        seconds_predicted=_START_SECONDS + max(tensorrt, (tensorrt + hashing) / 2),
    )


def fit_sentence(plan: Plan, gpu: GpuPlan) -> str:
    """Say in one line whether the context fits a GPU, and which is the largest that does."""
    asked, name = format_tokens(plan.request.max_context), gpu.recipe.gpu
    if gpu.largest_context is None:
        parts = plan.memory
        others = parts.total_bytes - parts.key_value_bytes - parts.compressed_key_bytes
        return (
            f"a context of {asked} does not fit the {name}, nor does any other: all but the caches takes "
            f"{format_bytes(others + gpu.recipe.reserve_bytes)} of {format_bytes(gpu.recipe.memory_bytes)}"
        )
    verb = "fits" if gpu.fits else "does not fit"
    return f"a context of {asked} {verb} the {name}; the largest that fits is {format_tokens(gpu.largest_context)}"
