"""`sala-export quantize`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..checkpoint.config import DEFAULT_MODEL
from ..specs import QUANTIZED_PRECISIONS, format_bytes
from .options import output_option
from .output import progress_display


@click.command()
@click.option(
    "--model",
    default=DEFAULT_MODEL,
    show_default=True,
    help="Checkpoint directory in Hugging Face layout, or a hub id.",
)
@click.option("--revision", help="Branch, tag or commit of a hub model.")
@click.option(
    "--precision",
    type=click.Choice([precision.value for precision in QUANTIZED_PRECISIONS]),
    required=True,
    help="Type of weights and, but for int4, of activations in the products.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    required=True,
    help='JSON lines with text such as the model will see: {"text": "..."} or {"input_ids": [...]}.',
)
@click.option("--samples", type=int, default=16, show_default=True, help="Lines to take.")
@click.option("--sequence-length", type=int, default=512, show_default=True, help="Tokens to take of each, at most.")
@click.option("--algorithm", help="How weights are rounded; docs/calibration.md.  [default: the best of the precision]")
@click.option("--include-gates", is_flag=True, help="Quantise z_proj and o_gate too.")
@output_option(required=False, text="Directory to write.  [default: MODEL-PRECISION]")
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.pass_obj
def quantize(
    console: Console,
    model: str,
    revision: str | None,
    precision: str,
    calibration: Path,
    samples: int,
    sequence_length: int,
    algorithm: str | None,
    include_gates: bool,
    output: Path | None,
    force: bool,
) -> None:
    """Quantise a checkpoint, with scales from calibration text, on any machine.

    Layer by layer, so that the whole model never is in memory. If it is interrupted, the same command goes on with the
    layers that are finished.
    """
    from ..building.pipeline import quantize_model
    from ..building.requests import ModelRequest
    from ..calibration.layer import QuantizationRecipe
    from ..calibration.samples import SampleRequest

    recipe = QuantizationRecipe.from_options(precision, algorithm=algorithm, include_gates=include_gates)
    request = ModelRequest(model=model, revision=revision)
    with progress_display(console) as on_progress:
        result = quantize_model(
            request,
            recipe,
            SampleRequest(file=calibration, samples=samples, sequence_length=sequence_length),
            output or Path(f"{request.name}-{recipe.precision}"),
            force=force,
            on_progress=on_progress,
        )
    console.print(f"{result.seconds:.0f} s, peak memory {format_bytes(result.peak_host_bytes)}", soft_wrap=True)
    click.echo(str(result.directory))
