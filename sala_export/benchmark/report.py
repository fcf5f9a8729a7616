"""Puts measurements beside the floor of the GPU and the published figures, as a table or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.config import SalaConfig
from ..checkpoint.keymap import weights
from ..engine.recipe import GpuRecipe, load_recipe, read_recipe, recipe_paths
from ..errors import RequestError
from ..machine import Machine, as_json
from ..planner.published import CONTEXTS, TTFT_SECONDS, is_published_model
from ..planner.roofline import WEIGHT_BITS, bounded_blocks, has_rates, time_of_decode, time_of_prefill
from ..planner.work import Sala
from ..runtime.model import Model
from ..specs import Precision, computed_in, format_bytes, format_tokens
from .measure import BenchmarkRequest, Measurement, Runs


@dataclass(frozen=True, kw_only=True, slots=True)
class Floor:
    """Seconds that no kernel beats: the roofline of the GPU (docs/plan.md)."""

    first_token: float
    token: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The whole result of one benchmark."""

    model: str
    config: SalaConfig
    runtime: str
    precision: str
    request: BenchmarkRequest
    chunk_tokens: int
    machine: Machine
    recipe: GpuRecipe | None
    why_no_floor: str | None
    """A sentence that says why there is no floor. None if there is one."""
    rows: tuple[Measurement, ...]
    quantized: Precision | None = None
    """Precision in which the weights are stored quantised. `precision` differs where they are dequantised when loaded.
    None if they are not quantised."""

    def floor(self, context: int) -> Floor | None:
        """The floor at a length of prompt. None without a recipe that knows the precision."""
        if self.recipe is None:
            return None
        model, bits = Sala.in_precision(self.config, Precision(self.precision)), WEIGHT_BITS[self.precision]
        prefill = model.prefill(context, self.chunk_tokens, bits, bounded_blocks=bounded_blocks(self.recipe))
        decode = model.decode(context, bits)
        return Floor(
            first_token=time_of_prefill(prefill, self.recipe, self.precision).floor,
            token=time_of_decode(decode, self.config.num_hidden_layers, self.recipe).floor,
        )

    def published(self, context: int) -> dict[str, float]:
        """Published seconds to the first token by GPU, in bf16. Empty for other models and lengths."""
        if not is_published_model(self.config) or context not in CONTEXTS:
            return {}
        return {row.recipe: row.sala[CONTEXTS.index(context)] for row in TTFT_SECONDS if row.weights == "bf16"}


def make_report(
    model: Model,
    name: str,
    config: SalaConfig,
    request: BenchmarkRequest,
    recipe: GpuRecipe | None,
    machine: Machine,
    rows: Sequence[Measurement],
    quantized: Precision | None = None,
) -> Report:
    """Make the report on a model that users know by `name`."""
    known, reason = _floor_recipe(model, recipe)
    return Report(
        model=name,
        config=config,
        runtime=model.runtime,
        precision=model.precision,
        request=request,
        chunk_tokens=request.chunk_tokens or model.default_chunk_tokens,
        machine=machine,
        recipe=known,
        why_no_floor=reason,
        rows=tuple(rows),
        quantized=quantized,
    )


def _floor_recipe(model: Model, recipe: GpuRecipe | None) -> tuple[GpuRecipe | None, str | None]:
    """The recipe if it serves this run, else why there is no floor."""
    if not model.on_gpu:
        return None, "no floor is known for a CPU"
    if recipe is None:
        names = ", ".join(recipe_paths())
        return None, f"no floor: no recipe is for this GPU (known are {names}), give one with --gpu-recipe"
    if not has_rates(recipe, model.precision):
        return None, f"no floor: the recipe {recipe.name} has no rate for {model.precision}"
    return recipe, None


def find_recipe(
    option: str | None, machine_gpus: Sequence[Mapping[str, str]], more: Sequence[Path] = ()
) -> GpuRecipe | None:
    """Find the recipe that the user names, else that of the first GPU by its driver's name. None if there is none.

    Args: `more` has recipes besides those of the package.

    Raises: RequestError or ConfigError for an unknown or malformed recipe.
    """
    if option is not None:
        try:
            return load_recipe(option)
        except RequestError as error:
            raise RequestError(str(error).replace("--gpu ", "--gpu-recipe ", 1)) from None
    known = {recipe.gpu: recipe for recipe in map(read_recipe, (*recipe_paths().values(), *more))}
    return known.get(machine_gpus[0]["name"]) if machine_gpus else None


def table(report: Report) -> str:
    """Write a table for people: two lines on what ran where, and a row for each context.

    Columns in which no row has a figure are left out."""
    published = sorted({gpu for row in report.rows for gpu in report.published(row.context)})
    heads = ["context", "first token", "spread", "tokens/s", "floor", "x floor", "ms/token", "spread", "floor"]
    heads += ["device memory", "predicted memory", "host memory", *(f"published {gpu}" for gpu in published)]
    lines = [heads, *(_cells(report, row, published) for row in report.rows)]
    columns = [column for column in zip(*lines, strict=True) if {*column[1:]} != {"-"}]
    padded = [[cell.rjust(max(map(len, column))) for cell in column] for column in columns]
    rendered = ["  ".join(line) for line in zip(*padded, strict=True)]
    return "\n".join([_headline(report), *rendered, *([report.why_no_floor] if report.why_no_floor else [])])


def _headline(report: Report) -> str:
    gpus = {gpu["name"] for gpu in report.machine.gpus} if report.rows and report.rows[0].device_bytes else set()
    where = ", ".join(sorted(gpus)) or report.machine.processor
    kind = computed_in(report.quantized, report.precision)
    return (
        f"{report.model}{' in' if kind == report.precision else ','} {kind} on {report.runtime}, {where}\n"
        f"chunks of {format_tokens(report.chunk_tokens)}, {report.request.new_tokens} new tokens, "
        f"median of {report.request.repeats}"
    )


def _cells(report: Report, row: Measurement, published: Sequence[str]) -> list[str]:
    floor, figures = report.floor(row.context), report.published(row.context)
    first = row.first_token.median
    return [
        format_tokens(row.context),
        f"{first:.3f} s",
        f"{row.first_token.spread:.0%}",
        f"{row.context / first:,.0f}",
        f"{floor.first_token:.3f} s" if floor else "-",
        f"{first / floor.first_token:.2f}" if floor else "-",
        f"{1e3 * row.token.median:.2f}" if row.token else "-",
        f"{row.token.spread:.0%}" if row.token else "-",
        f"{1e3 * floor.token:.2f}" if floor else "-",
        "-" if row.device_bytes is None else format_bytes(row.device_bytes),
        "-" if row.predicted_device_bytes is None else format_bytes(row.predicted_device_bytes),
        format_bytes(row.host_bytes),
        *(f"{figures[gpu]:.1f} s" if gpu in figures else "-" for gpu in published),
    ]


def describe(report: Report) -> dict[str, Any]:
    """Everything in the report as plain JSON values, in seconds and bytes."""
    return {
        "model": {"source": report.model, "shapes": _shapes(report.config)},
        "runtime": report.runtime,
        "precision": report.precision,
        "quantized": report.quantized,
        "chunk_tokens": report.chunk_tokens,
        "new_tokens": report.request.new_tokens,
        "repeats": report.request.repeats,
        "seed": report.request.seed,
        "machine": as_json(report.machine),
        "floor_recipe": report.recipe.name if report.recipe else None,
        "why_no_floor": report.why_no_floor,
        "contexts": [describe_context(report, row) for row in report.rows],
    }


def _shapes(config: SalaConfig) -> dict[str, Any]:
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim")
    told = {name: getattr(config, name) for name in (*names, "num_attention_heads", "num_key_value_heads")}
    return {**told, "parameters": sum(weight.elements for weight in weights(config))}


def describe_context(report: Report, row: Measurement) -> dict[str, Any]:
    """One row of the report as `describe` writes it."""
    floor = report.floor(row.context)
    return {
        "context": row.context,
        "first_token_seconds": _runs(row.first_token, floor.first_token if floor else None),
        "token_seconds": _runs(row.token, floor.token if floor else None) if row.token else None,
        "prefill_tokens_per_second": row.context / row.first_token.median,
        "published_first_token_seconds": report.published(row.context),
        "device_memory_bytes": row.device_bytes,
        "predicted_device_memory_bytes": row.predicted_device_bytes,
        "host_memory_bytes": row.host_bytes,
    }


def _runs(runs: Runs, floor: float | None) -> dict[str, Any]:
    return {"median": runs.median, "spread": runs.spread, "runs": list(runs.seconds), "floor": floor}
