"""`sala-export build`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..engine.request import FlavourName
from .options import MemorySize, engine_options, model_options, output_option, write_options
from .output import progress_display


@click.command()
@click.option("--gpu", required=True, help="GPU to build for, e.g. rtx5090, or the path of a recipe (.toml).")
@model_options
@engine_options
@click.option(
    "--flavour",
    type=click.Choice([name.value for name in FlavourName]),
    default=FlavourName.AUTO.value,
    show_default=True,
    help="rtx: TensorRT for RTX, builds without a GPU; tensorrt: builds on the GPU that is present.",
)
@click.option("--shards", type=int, help="Engines to cut the model into.  [default: as few as memory allows]")
@click.option(
    "--host-memory", type=MemorySize(), help="Memory that the build may take, e.g. 12G.  [default: 2/3 of what is free]"
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Quantise the model first, as `quantize` does, to MODEL-PRECISION beside the bundle: JSON lines with text.",
)
@click.option("--no-weights", is_flag=True, help="Leave the weight files out: only the engine will run.")
@output_option(required=False, text="Bundle to write.  [default: MODEL-GPU-PRECISION.sala]")
@write_options
@click.pass_obj
def build(
    console: Console,
    gpu: str,
    model: str,
    revision: str | None,
    layers: int | None,
    precision: str | None,
    max_context: int | None,
    prefill_chunk: int | None,
    max_batch: int,
    flavour: str,
    shards: int | None,
    host_memory: int | None,
    calibration: Path | None,
    no_weights: bool,
    output: Path | None,
    copy: bool,
    force: bool,
) -> None:
    """Build a TensorRT engine and all that a runtime needs as one bundle, on any machine.

    A model that does not fit this machine's memory is built in shards, one after the other. If that is interrupted, the
    same command goes on with the shards that are finished.
    """
    from ..engine.recipe import load_recipe
    from ..engine.request import EngineRequest
    from ..pipeline import BuildRequest, ModelRequest, build_bundle, quantize_for_build

    source = ModelRequest(model=model, revision=revision, layers=layers)
    recipe = load_recipe(gpu)
    engine = EngineRequest.from_options(
        recipe,
        precision=precision or source.stored_precision(),
        max_context=max_context,
        prefill_chunk=prefill_chunk,
        max_batch=max_batch,
        flavour=FlavourName(flavour),
    )
    request = BuildRequest(
        model=source,
        engine=engine,
        output=output or Path(f"{source.name}-{engine.recipe.name}-{engine.precision}.sala"),
        shards=shards,
        host_memory_bytes=host_memory,
        copy_weights=copy,
        include_weights=not no_weights,
        force=force,
    )
    with progress_display(console) as on_progress:
        if calibration is not None:
            from ..calibration.samples import SampleRequest

            request = quantize_for_build(request, SampleRequest(file=calibration), on_progress)
        bundle = build_bundle(request, on_progress)
    click.echo(str(bundle.directory))
