"""`sala-export export`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..specs import Precision
from .options import model_options, output_option, write_options
from .output import progress_display


@click.command()
@model_options
@click.option(
    "--precision",
    type=click.Choice([p.value for p in Precision]),
    help="Type of the activations. The weights stay as they are stored.  [default: the precision of a quantised "
    "checkpoint, else bf16]",
)
@output_option(required=True, text="Directory to write.")
@write_options
@click.pass_obj
def export(
    console: Console,
    model: str,
    revision: str | None,
    layers: int | None,
    precision: str | None,
    output: Path,
    link: bool,
    force: bool,
) -> None:
    """Write only the ONNX graph, with the checkpoint's own weight files beside it.

    For example:

    \b
      sala-export export --model my-checkpoint -o graph
    """
    from ..building.pipeline import export_onnx
    from ..building.requests import ModelRequest

    request = ModelRequest(model=model, revision=revision, layers=layers)
    chosen = Precision(precision) if precision else request.stored_precision() or Precision.BF16
    with progress_display(console) as on_progress:
        export_onnx(
            request,
            output,
            chosen,
            may_round=precision is not None,
            link_weights=link,
            force=force,
            on_progress=on_progress,
        )
    click.echo(str(output))
