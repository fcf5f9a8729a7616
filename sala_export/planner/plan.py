"""What a build and its engine will take, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..checkpoint.config import SalaConfig
from ..engine.host import available_host_bytes, host_budget
from ..engine.memory import DeviceMemory, largest_context
from ..engine.recipe import Recipe, load_recipe
from ..engine.request import EngineRequest
from ..engine.sharding import ShardRange, choose_shards, host_bytes_needed
from ..errors import RequestError
from ..planned_graph import planned_graph, planned_memory
from ..specs import Precision, format_tokens
from .published import BASELINES, CONTEXTS, GENERATED_TOKENS, TTFT_SECONDS, published_seconds
from .roofline import WEIGHT_BITS, Estimate, time_of_decode, time_of_prefill
from .work import Dense, Sala

_LARGEST_CONTEXT = 64 << 20
_BUILD_FIXED_SECONDS = 5.0
_BUILD_SECONDS_PER_LAYER = 0.65
_BUILD_SECONDS_PER_GIGABYTE = 7.9
"""Measured with TensorRT for RTX 1.7.1.116 on two cores of an AMD EPYC: the trace takes 8 s for 5 layers and 25.5 s for
32; engines and hashes 150 s for the 18.95 GB of 9B."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextRow:
    """One length of prompt, at batch 1."""

    context: int
    memory: DeviceMemory
    fits: bool
    prefill: Estimate
    decode: Estimate
    """One token behind the prompt."""
    published_prefill: float | None
    """Seconds, by another implementation; None where nothing is published for this GPU and model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineRow:
    """The same length on a dense model of bf16 weights."""

    context: int
    memory_bytes: float
    fits: bool
    prefill: Estimate
    decode: Estimate
    published_prefill: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildAccount:
    """What building takes on this machine."""

    shards: tuple[ShardRange, ...]
    """Empty if even one layer needs more memory than may be used."""
    host_bytes: int
    """Resident peak."""
    available_bytes: int
    plan_bytes: int
    packed_bytes: int
    """Quantised weights that are written once more beside the graph, on top of the plans: int4."""
    copied_bytes: int
    """On top of both if the weights cannot be hard-linked."""
    seconds: float
    """Predicted, on two cores and with weights linked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A published figure beside this model of time."""

    gpu: str
    context: int
    published: float
    estimate: Estimate

    @property
    def ratio(self) -> float:
        """Predicted to published: below 1, this engine is predicted to be faster."""
        return self.estimate.predicted / self.published


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that `sala-export plan` tells."""

    request: EngineRequest
    memory: DeviceMemory
    fits: bool
    largest_context: int | None
    """None if no context fits."""
    rows: tuple[ContextRow, ...]
    baseline: Dense | None
    baseline_rows: tuple[BaselineRow, ...]
    build: BuildAccount
    checks: tuple[Check, ...]


def make_plan(config: SalaConfig, request: EngineRequest, compare: str | None, is_published: bool) -> Plan:
    """Everything about an engine of `request` for the model `config`.

    Args: `compare` names a baseline of `BASELINES`; `is_published`: the configuration is that of the published model,
        so that published figures apply.
    Raises: RequestError for an unknown baseline.
    """
    if compare is not None and compare.lower() not in BASELINES:
        raise RequestError(f"--compare {compare}: unknown model, known are {', '.join(BASELINES)}")
    baseline = BASELINES[compare.lower()] if compare else None
    build = account_of_build(config, request)
    memory = planned_memory(config, request, max(1, len(build.shards)))
    graph = planned_graph(config, request.precision)
    return Plan(
        request=request,
        memory=memory,
        fits=memory.total_bytes <= request.recipe.memory_bytes,
        largest_context=largest_context(graph, request, memory, limit=_LARGEST_CONTEXT),
        rows=tuple(
            _row(config, replace(request, max_context=context), len(build.shards), is_published)
            for context in _contexts(request)
        ),
        baseline=baseline,
        baseline_rows=tuple(baseline_row(baseline, request.recipe, context) for context in CONTEXTS)
        if baseline
        else (),
        build=build,
        checks=published_checks(config) if is_published else (),
    )


def _contexts(request: EngineRequest) -> Sequence[int]:
    """The published lengths, and the one asked for, that hold at least one chunk."""
    return sorted({request.max_context, *(c for c in CONTEXTS if c >= request.prefill_chunk)})


def _row(config: SalaConfig, request: EngineRequest, shards: int, is_published: bool) -> ContextRow:
    model, recipe, context = Sala(config), request.recipe, request.max_context
    bits = WEIGHT_BITS[request.precision]
    memory = planned_memory(config, request, max(1, shards))
    published = published_seconds(recipe.name, request.precision) if is_published and context in CONTEXTS else None
    return ContextRow(
        context=context,
        memory=memory,
        fits=memory.total_bytes <= recipe.memory_bytes,
        prefill=time_of_prefill(model.prefill(context, request.prefill_chunk, bits), recipe, request.precision),
        decode=time_of_decode(model.decode(context, bits), config.num_hidden_layers, recipe),
        published_prefill=published.sala[CONTEXTS.index(context)] if published else None,
    )


def baseline_row(model: Dense, recipe: Recipe, context: int, weights: str = "bf16", chunk: int = 8192) -> BaselineRow:
    """A dense model on a GPU: its weights, its cache for the prompt and the published runs' 1K answer, what the recipe
    leaves to others, and as activations two rows and the MLP of one chunk."""
    bits = WEIGHT_BITS[weights]
    activations = 2 * chunk * (2 * model.hidden_size + 3 * model.intermediate_size)
    memory = model.weights_bytes(bits) + model.cache_bytes(context + GENERATED_TOKENS) + activations
    memory += recipe.reserve_bytes
    row = published_seconds(recipe.name, weights)
    return BaselineRow(
        context=context,
        memory_bytes=memory,
        fits=memory <= recipe.memory_bytes,
        prefill=time_of_prefill(model.prefill(context, chunk, bits), recipe, weights),
        decode=time_of_decode(model.decode(context, bits), model.layers, recipe),
        published_prefill=row.qwen3_8b[CONTEXTS.index(context)] if row and context in CONTEXTS else None,
    )


def published_checks(config: SalaConfig) -> tuple[Check, ...]:
    """The ten published bf16 figures beside what this model of time says for the same GPU."""
    return tuple(
        Check(
            gpu=row.recipe,
            context=context,
            published=published,
            estimate=time_of_prefill(
                Sala(config).prefill(context, 8192, WEIGHT_BITS["bf16"]), load_recipe(row.recipe), "bf16"
            ),
        )
        for row in TTFT_SECONDS
        if row.weights == "bf16"
        for context, published in zip(CONTEXTS, row.sala, strict=True)
    )


def account_of_build(config: SalaConfig, request: EngineRequest) -> BuildAccount:
    """What building takes on this machine, with the shards that `build` would choose now."""
    graph = planned_graph(config, request.precision)
    try:
        shards = choose_shards(graph.layer_weights_bytes, host_budget())
    except RequestError:
        shards = ()
    largest = max((shard.weights_bytes for shard in shards), default=max(graph.layer_weights_bytes))
    gigabytes = graph.weights_bytes / 1e9
    return BuildAccount(
        shards=shards,
        host_bytes=host_bytes_needed(largest),
        available_bytes=available_host_bytes(),
        plan_bytes=graph.weights_bytes,
        packed_bytes=graph.quantized_parameters // 2 if request.precision is Precision.INT4 else 0,
        copied_bytes=graph.weights_bytes,
        seconds=_BUILD_FIXED_SECONDS
        + _BUILD_SECONDS_PER_LAYER * config.num_hidden_layers
        + _BUILD_SECONDS_PER_GIGABYTE * gigabytes,
    )


def fit_sentence(plan: Plan) -> str:
    """One line: whether the context fits, and the largest that does."""
    asked, recipe = format_tokens(plan.request.max_context), plan.request.recipe
    if plan.largest_context is None:
        return f"a context of {asked} does not fit the {recipe.gpu}, nor does any other: the weights leave no room"
    largest = format_tokens(plan.largest_context)
    verb = "fits" if plan.fits else "does not fit"
    return f"a context of {asked} {verb} the {recipe.gpu}; the largest that fits is {largest}"
