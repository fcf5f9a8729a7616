"""`sala-export build`"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from ..specs import FlavourName
from .options import (
    CPU,
    engine_options,
    gpu_option,
    is_cpu,
    model_options,
    output_option,
    require_no_options,
    write_options,
)
from .output import progress_display

if TYPE_CHECKING:
    from ..building.requests import BuildRequest


@click.command()
@gpu_option("build", takes_cpu=True)
@model_options
@engine_options
@click.option(
    "--flavour",
    type=click.Choice([name.value for name in FlavourName]),
    default=FlavourName.AUTO.value,
    show_default=True,
    help="rtx uses TensorRT for RTX and needs no GPU. tensorrt builds on the GPU of this machine, for that GPU.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Text samples (JSON lines) to quantise the model with, if --precision asks for that. The quantised checkpoint "
    "is saved as MODEL-PRECISION beside the bundle.  [default: the text that ships with sala-export]",
)
@click.option(
    "--no-weights",
    is_flag=True,
    help="Leave out the weight files. To run the bundle you then give them: --weights DIR.",
)
@output_option(required=False, text="Bundle to write.  [default: MODEL-TARGET-PRECISION.sala]")
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
    calibration: Path | None,
    no_weights: bool,
    output: Path | None,
    link: bool,
    force: bool,
) -> None:
    """Build a bundle: a TensorRT engine and everything that a runtime needs.

    You can build on any machine, with or without a GPU. One bundle can serve several GPUs, for example --gpu rtx.
    Every bundle runs on a CPU, too. With --gpu cpu it has no engine, and you need no TensorRT to build it.

    For example:

    \b
      sala-export build --gpu rtx -o sala.sala
      sala-export build --gpu rtx5090 --model my-checkpoint --precision fp8 --max-context 256K
      sala-export build --gpu cpu --precision int4
    """
    if is_cpu(gpu):
        require_no_options(("max_context", "prefill_chunk", "max_batch", "flavour"))

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    request = build_request(
        gpu,
        model,
        revision=revision,
        layers=layers,
        precision=precision,
        max_context=max_context,
        prefill_chunk=prefill_chunk,
        max_batch=max_batch,
        flavour=flavour,
        no_weights=no_weights,
        output=output,
        link=link,
        force=force,
    )
    from ..building.pipeline import build_bundle, quantize_for_build

    source, engine = request.model, request.engine
    with progress_display(console) as on_progress:
        if calibration is not None or (engine.precision.is_quantized and source.stored_quantization() is None):
            request = quantize_for_build(request, calibration, say, on_progress)
        bundle = build_bundle(request, on_progress)
    click.echo(str(bundle.directory))


def build_request(
    gpu: str,
    model: str,
    *,
    max_batch: int,
    max_context: int | None,
    revision: str | None = None,
    layers: int | None = None,
    precision: str | None = None,
    prefill_chunk: int | None = None,
    flavour: str = FlavourName.AUTO.value,
    no_weights: bool = False,
    output: Path | None = None,
    link: bool = False,
    force: bool = False,
) -> BuildRequest:
    """What the options of `build` ask for. On a CPU the sizes of an engine mean nothing. Raises: what is wrong."""
    if not is_cpu(gpu):
        import_module("triton")  # so that the extra of engines is told, and not the smaller one
    from ..building.requests import BuildRequest, CpuRequest, ModelRequest
    from ..engine.recipe import load_target
    from ..engine.request import EngineRequest

    source = ModelRequest(model=model, revision=revision, layers=layers)
    target = None if is_cpu(gpu) else load_target(gpu)
    # Asks the hub, so a precision that no GPU of the target has is refused before.
    stored = source.stored_precision() if precision is None else None
    engine: EngineRequest | CpuRequest
    if target is None:
        engine = CpuRequest.from_options(precision, stored)
    else:
        engine = EngineRequest.from_options(
            target,
            precision=precision,
            stored=stored,
            max_context=max_context,
            prefill_chunk=prefill_chunk,
            max_batch=max_batch,
            flavour=FlavourName(flavour),
        )
    return BuildRequest(
        model=source,
        engine=engine,
        output=output or Path(f"{source.name}-{target.name if target else CPU}-{engine.precision}.sala"),
        may_round=precision is not None,
        link_weights=link,
        include_weights=not no_weights,
        force=force,
    )
