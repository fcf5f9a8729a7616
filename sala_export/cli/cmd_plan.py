"""`sala-export plan`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from ..errors import RequestError
from ..specs import format_bytes, format_tokens
from .options import engine_options
from .output import PLOT_SUFFIXES, print_json

if TYPE_CHECKING:
    from ..planner.plan import BuildAccount, Plan
    from ..planner.roofline import Estimate

PUBLISHED_PRESET = "9b"


@click.command()
@click.option("--gpu", required=True, help="GPU to plan for, e.g. rtx5090, or the path of a recipe (.toml).")
@click.option(
    "--model",
    help="Checkpoint directory or hub id, of which config.json is read.  [default: the published dimensions]",
)
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option("--layers", type=click.IntRange(min=1), help="Take the first N layers only.")
@engine_options
@click.option("--compare", help="Show a dense model beside it: qwen3-8b.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw it over the context: a .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def plan(
    gpu: str,
    model: str | None,
    revision: str | None,
    layers: int | None,
    precision: str | None,
    max_context: int | None,
    prefill_chunk: int | None,
    max_batch: int,
    compare: str | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Say what will fit where and how fast it will be, before anything is built.

    Times are predicted from a roofline of the GPU; docs/plan.md has the equations. A context that does not fit is
    reported, and is no error.
    """
    from ..checkpoint.presets import PRESETS
    from ..engine.recipe import load_recipe
    from ..engine.request import EngineRequest
    from ..planner.plan import make_plan
    from ..planner.published import is_published_model

    if plot is not None and plot.suffix not in PLOT_SUFFIXES:
        raise RequestError(f"--plot {plot}: expected a name that ends in {', '.join(PLOT_SUFFIXES)}")
    recipe = load_recipe(gpu)
    request = EngineRequest.from_options(
        recipe,
        precision=precision or (_stored_precision(model, revision) if model is not None else None),
        max_context=max_context,
        prefill_chunk=prefill_chunk,
        max_batch=max_batch,
    )
    published = PRESETS[PUBLISHED_PRESET].config
    config = published if model is None else _read_config(model, revision)
    if layers is not None:
        config = config.truncated(layers)
    found = make_plan(config, request, compare, is_published=is_published_model(config))
    if plot is not None:
        from ..planner.plot import draw

        draw(found, plot)
    if as_json:
        print_json(describe(found, model))
    else:
        _print_tables(found, model)


def _read_config(model: str, revision: str | None) -> Any:
    from ..checkpoint.config import SalaConfig

    return SalaConfig.from_file(_config_file(model, revision))


def _stored_precision(model: str, revision: str | None) -> str | None:
    from ..checkpoint.quantization import read_quantization

    quantization = read_quantization(_config_file(model, revision))
    return quantization.precision if quantization else None


def _config_file(model: str, revision: str | None) -> Path:
    from ..checkpoint.hub import resolve_model
    from ..checkpoint.reader import CONFIG_FILE

    return resolve_model(model, revision, config_only=True) / CONFIG_FILE


def _build_fields(build: BuildAccount) -> dict[str, Any]:
    return {
        "shards": [{"first_layer": s.first_layer, "num_layers": s.num_layers} for s in build.shards],
        "host_bytes": build.host_bytes,
        "available_host_bytes": build.available_bytes,
        "plan_bytes": build.plan_bytes,
        "packed_bytes": build.packed_bytes,
        "copied_bytes_unless_linked": build.copied_bytes,
        "seconds_predicted": build.seconds,
    }


def describe(found: Plan, model: str | None) -> dict[str, Any]:
    """All that is shown, as plain JSON values; seconds and bytes."""
    request, recipe = found.request, found.request.recipe
    return {
        "model": model or "published dimensions",
        "gpu": {
            "recipe": recipe.name,
            "name": recipe.gpu,
            "memory_bytes": recipe.memory_bytes,
            "compute_capability": str(recipe.compute_capability),
        },
        "precision": request.precision.value,
        "max_context": request.max_context,
        "prefill_chunk": request.prefill_chunk,
        "max_batch": request.max_batch,
        "fits": found.fits,
        "largest_context": found.largest_context,
        "device_memory_bytes": {**found.memory.parts(), "total": found.memory.total_bytes},
        "contexts": [
            {
                "context": row.context,
                "device_memory_bytes": row.memory.total_bytes,
                "fits": row.fits,
                "ttft_seconds": _times(row.prefill, row.published_prefill),
                "decode_seconds_per_token": asdict(row.decode),
            }
            for row in found.rows
        ],
        "baseline": None
        if found.baseline is None
        else {
            "model": found.baseline.name,
            "contexts": [
                {
                    "context": row.context,
                    "device_memory_bytes": row.memory_bytes,
                    "fits": row.fits,
                    "ttft_seconds": _times(row.prefill, row.published_prefill),
                    "decode_seconds_per_token": asdict(row.decode),
                }
                for row in found.baseline_rows
            ],
        },
        "build": _build_fields(found.build),
        "published": [
            {
                "gpu": check.gpu,
                "context": check.context,
                "ttft_seconds": _times(check.estimate, check.published),
                "predicted_to_published": check.ratio,
            }
            for check in found.checks
        ],
    }


def _times(estimate: Estimate, published: float | None) -> dict[str, float | None]:
    return {"floor": estimate.floor, "predicted": estimate.predicted, "published": published}


def _print_tables(found: Plan, model: str | None) -> None:
    from ..planner.plan import fit_sentence

    # Tables keep their columns when they go to a file or a pipe.
    console = Console(highlight=False, width=None if Console().is_terminal else 200)
    recipe, request = found.request.recipe, found.request
    name = model or "MiniCPM-SALA, published dimensions"
    chunk = format_tokens(request.prefill_chunk)
    console.print(f"{name} in {request.precision} on the {recipe.gpu}, chunks of {chunk}, batch {request.max_batch}")
    console.print(fit_sentence(found))
    console.print()
    console.print(_memory_table(found))
    console.print()
    console.print(_context_table(found))
    console.print("times are predicted, except the published ones; the floor is the roofline of the GPU")
    console.print()
    console.print(_build_table(found))
    if found.checks:
        console.print()
        console.print(_check_table(found))


def _memory_table(found: Plan) -> Table:
    table = Table(f"device memory at {format_tokens(found.request.max_context)}", "bytes", "", box=None)
    for part, size in found.memory.parts().items():
        table.add_row(part.replace("_", " "), f"{size:,}", format_bytes(size))
    total = found.memory.total_bytes
    table.add_row("total", f"{total:,}", format_bytes(total))
    memory = found.request.recipe.memory_bytes
    table.add_row("the GPU has", f"{memory:,}", format_bytes(memory))
    return table


def _context_table(found: Plan) -> Table:
    columns = ["context", "memory", "first token", "floor", "published", "ms per token", "floor"]
    if found.baseline is not None:
        columns += [found.baseline.name, "first token", "published", "ms per token"]
    table = Table(*columns, box=None)
    dense = {row.context: row for row in found.baseline_rows}
    for row in found.rows:
        cells = [
            format_tokens(row.context),
            _memory(row.memory.total_bytes, row.fits),
            *_unless(row.fits, f"{row.prefill.predicted:.1f} s", f"{row.prefill.floor:.1f} s"),
            _seconds(row.published_prefill),
            *_unless(row.fits, f"{1e3 * row.decode.predicted:.1f}", f"{1e3 * row.decode.floor:.1f}"),
        ]
        other = dense.get(row.context)
        if other is not None:
            cells += [
                _memory(other.memory_bytes, other.fits),
                *_unless(other.fits, f"{other.prefill.predicted:.1f} s"),
                _seconds(other.published_prefill),
                *_unless(other.fits, f"{1e3 * other.decode.predicted:.1f}"),
            ]
        table.add_row(*cells)
    return table


def _build_table(found: Plan) -> Table:
    build = found.build
    table = Table("building on this machine", "", box=None)
    if build.shards:
        table.add_row("shards", f"{len(build.shards)}, one after the other")
        table.add_row("memory", f"{format_bytes(build.host_bytes)} of {format_bytes(build.available_bytes)} free")
    else:
        needed, free = format_bytes(build.host_bytes), format_bytes(build.available_bytes)
        table.add_row("memory", f"one layer alone needs {needed}, too much of {free} free")
    written = build.plan_bytes + build.packed_bytes
    both = format_bytes(written + build.copied_bytes)
    table.add_row("disk", f"{format_bytes(written)} beside linked weights, {both} if they are copied")
    table.add_row("time, predicted", f"{build.seconds / 60:.1f} minutes on two cores")
    return table


def _check_table(found: Plan) -> Table:
    table = Table("published, bf16", "context", "first token", "predicted here", "ratio", "floor", box=None)
    for check in found.checks:
        table.add_row(
            check.gpu,
            format_tokens(check.context),
            f"{check.published:.1f} s",
            f"{check.estimate.predicted:.1f} s",
            f"{check.ratio:.2f}",
            f"{check.estimate.floor:.1f} s",
        )
    return table


def _memory(size: float, fits: bool) -> str:
    return format_bytes(size) if fits else f"{format_bytes(size)}, out of memory"


def _unless(fits: bool, *cells: str) -> list[str]:
    return list(cells) if fits else ["-"] * len(cells)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
