"""`sala-export plan`"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from ..plotting import plot_file
from ..specs import format_bytes, format_tokens
from .options import (
    Bytes,
    FiniteRange,
    complete_folder,
    engine_options,
    gpu_option,
    is_cpu,
    json_option,
    layers_option,
    require_no_options,
    revision_option,
)
from .output import print_json, table_console

if TYPE_CHECKING:
    from ..checkpoint.config import SalaConfig
    from ..checkpoint.quantization import Quantization
    from ..planner.plan import ContextRow, GpuPlan, Plan
    from ..planner.roofline import Estimate

_CPU_CONTEXT = 8192


@click.command()
@gpu_option("plan", takes_cpu=True)
@click.option(
    "--model",
    shell_complete=complete_folder,
    help="Checkpoint directory or hub id. Only its config.json is read.  [default: the published dimensions]",
)
@revision_option
@layers_option
@engine_options
@click.option("--compare", help="Show a dense model beside it: qwen3-8b.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Write a plot of memory and time over context length (.png, .svg or .pdf).",
)
@click.option("--memory", type=Bytes(), help="With --gpu cpu: memory of the machine, e.g. 16G.  [default: this one's]")
@click.option(
    "--bandwidth",
    type=FiniteRange(min=0, min_open=True),
    help="With --gpu cpu: rate at which the machine reads memory, in GB/s.  [default: measured here]",
)
@json_option
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
    memory: int | None,
    bandwidth: float | None,
    as_json: bool,
) -> None:
    """Predict memory, disk and speed before you build.

    The times come from a roofline of each GPU, explained in docs/plan.md. If your context does not fit, the command
    says which one does. That is not an error. For example:

    \b
      sala-export plan --gpu rtx5090 --max-context 1M
      sala-export plan --gpu a6000,rtx4090 --json
      sala-export plan --gpu cpu --memory 16G

    With --gpu cpu you learn what this machine holds without a GPU, and how fast it will be. It takes a second or two
    to measure the machine.
    """
    from ..building.requests import ModelRequest
    from ..engine.recipe import load_target
    from ..engine.request import EngineRequest
    from ..planner.plan import make_plan
    from ..planner.published import PUBLISHED_CONFIG, is_published_model

    for_cpu = is_cpu(gpu)
    require_no_options(("prefill_chunk", "max_batch", "compare", "plot") if for_cpu else ("memory", "bandwidth"))
    source = None if model is None else ModelRequest(model=model, revision=revision, layers=layers)
    quantization = source.stored_quantization() if source else None
    if precision is None and quantization is not None:
        precision = quantization.precision
    config = source.config() if source else PUBLISHED_CONFIG
    if source is None and layers is not None:
        config = config.truncated(layers)
    if for_cpu:
        _show_cpu(config, model, precision, quantization, max_context, memory, bandwidth, as_json)
        return
    request = EngineRequest.from_options(
        load_target(gpu),
        precision=precision,
        max_context=max_context,
        prefill_chunk=prefill_chunk,
        max_batch=max_batch,
    )
    if quantization is not None and quantization.precision is not request.precision:
        quantization = None
    with plot_file(plot) as save_plot:
        found = make_plan(config, request, compare, is_published_model(config), quantization)
        if save_plot is not None:
            from ..planner.plot import draw

            save_plot(draw(found))
    if as_json:
        print_json(describe(found, model))
    else:
        _print_tables(found, model)


def _show_cpu(
    config: SalaConfig,
    model: str | None,
    precision: str | None,
    quantization: Quantization | None,
    max_context: int | None,
    memory: int | None,
    bandwidth: float | None,
    as_json: bool,
) -> None:
    from ..planner.cpu import cpu_precisions, plan_cpu
    from ..planner.cpu_rates import this_machine
    from .plan_cpu import describe_cpu, print_cpu

    precisions = cpu_precisions(precision)
    machine = this_machine(memory, None if bandwidth is None else 1e9 * bandwidth)
    found = plan_cpu(config, machine, max_context or _CPU_CONTEXT, precisions, quantization)
    if as_json:
        print_json(describe_cpu(found, model))
    else:
        print_cpu(found, model)


def describe(found: Plan, model: str | None) -> dict[str, Any]:
    """Everything that `plan` shows, as plain JSON values, in seconds and bytes."""
    request = found.request
    return {
        "model": "published dimensions" if model is None else model,
        "target": request.target.name,
        "compute_capabilities": [str(capability) for capability in request.target.compute_capabilities],
        "precision": request.precision.value,
        "max_context": request.max_context,
        "prefill_chunk": request.prefill_chunk,
        "max_batch": request.max_batch,
        "device_memory_bytes": {**found.memory.parts(), "total": found.memory.total_bytes},
        "gpus": [_gpu_fields(gpu, found) for gpu in found.gpus],
        "build": asdict(found.build),
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


def _gpu_fields(gpu: GpuPlan, found: Plan) -> dict[str, Any]:
    recipe = gpu.recipe
    return {
        "recipe": recipe.name,
        "name": recipe.gpu,
        "compute_capability": str(recipe.compute_capability),
        "memory_bytes": recipe.memory_bytes,
        "reserve_bytes": recipe.reserve_bytes,
        "fits": gpu.fits,
        "largest_context": gpu.largest_context,
        "contexts": [_row_fields(row) for row in gpu.rows],
        "baseline": found.baseline
        and {"model": found.baseline.name, "contexts": [_row_fields(row) for row in gpu.baseline_rows]},
    }


def _row_fields(row: ContextRow) -> dict[str, Any]:
    return {
        "context": row.context,
        "device_memory_bytes": row.memory_bytes,
        "fits": row.fits,
        "ttft_seconds": _times(row.prefill, row.published_prefill),
        "decode_seconds_per_token": asdict(row.decode),
    }


def _times(estimate: Estimate, published: float | None) -> dict[str, float | None]:
    return {"floor": estimate.floor, "predicted": estimate.predicted, "published": published}


def _print_tables(found: Plan, model: str | None) -> None:
    from ..engine.recipe import names_of
    from ..planner.plan import fit_sentence

    console = table_console()
    request = found.request
    name = "MiniCPM-SALA, published dimensions" if model is None else model
    gpus = names_of(request.target.gpus)
    chunk = format_tokens(request.prefill_chunk)
    console.print(f"{name} in {request.precision} on the {gpus}, chunks of {chunk}, batch {request.max_batch}")
    for gpu in found.gpus:
        console.print(fit_sentence(found, gpu))
    tables = [_memory_table(found), *_context_tables(found), _build_table(found)]
    for table in tables + ([_check_table(found)] if found.checks else []):
        console.print()
        console.print(table)
    console.print()
    console.print('"no" stands for out of memory, "-" for what nobody published.')
    console.print("All times are predicted, except the published ones. The floor is the roofline of the GPU.")


def _memory_table(found: Plan) -> Table:
    table = Table(f"device memory at {format_tokens(found.request.max_context)}", "bytes", "", box=None)
    rows = {part.replace("_", " "): size for part, size in found.memory.parts().items()}
    differ = len({gpu.recipe.reserve_bytes for gpu in found.gpus}) > 1
    for recipe in (gpu.recipe for gpu in found.gpus):
        on = f", {recipe.gpu}" if differ else ""
        rows[f"reserve{on}"] = recipe.reserve_bytes
        rows[f"total{on}"] = found.memory.total_bytes + recipe.reserve_bytes
    rows |= {f"{gpu.recipe.gpu} has": gpu.recipe.memory_bytes for gpu in found.gpus}
    for name, size in rows.items():
        table.add_row(name, f"{size:,}", format_bytes(size))
    return table


def _context_tables(found: Plan) -> Iterator[Table]:
    for gpu in found.gpus:
        yield _context_table(gpu.recipe.gpu, gpu.rows)
        if found.baseline is not None:
            yield _context_table(f"{found.baseline.name} in bf16, {gpu.recipe.gpu}", gpu.baseline_rows)


def _context_table(title: str, rows: Sequence[ContextRow]) -> Table:
    columns = ("context", "memory", "first token", "floor", "published", "ms per token", "floor")
    table = Table(*columns, title=title, title_justify="left", title_style="", box=None)
    for row in rows:
        prefill, published, decode = row.prefill, row.published_prefill, row.decode
        table.add_row(
            format_tokens(row.context),
            format_bytes(row.memory_bytes),
            *_unless(row.fits, f"{prefill.predicted:.1f} s", f"{prefill.floor:.1f} s"),
            "-" if published is None else f"{published:.1f} s",
            *_unless(row.fits, f"{1e3 * decode.predicted:.1f}", f"{1e3 * decode.floor:.1f}"),
        )
    return table


def _build_table(found: Plan) -> Table:
    build = found.build
    table = Table("building on this machine", "", box=None)
    table.add_row("time, predicted", f"{build.seconds_predicted:.0f} s on two cores")
    table.add_row("memory", f"{format_bytes(build.host_bytes)} of {format_bytes(build.available_host_bytes)} free")
    written = build.plan_bytes + build.scratch_bytes
    both = format_bytes(written + build.copied_bytes_unless_linked)
    table.add_row("disk", f"{both}, or {format_bytes(written)} where weights take no room (btrfs, xfs, or --link)")
    if build.scratch_bytes:
        size = format_bytes(build.scratch_bytes)
        table.add_row("", f"of it {size} of constants inside the plan, and as much only until it is built")
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


def _unless(fits: bool, *cells: str) -> list[str]:
    return list(cells) if fits else ["no"] * len(cells)
