"""`sala-export quantize`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..specs import QUANTIZED_PRECISIONS, format_bytes
from .options import force_option, model_option, output_option, revision_option
from .output import progress_display


@click.command()
@model_option
@revision_option
@click.option(
    "--precision",
    type=click.Choice([precision.value for precision in QUANTIZED_PRECISIONS]),
    required=True,
    help="Type of the weights. All but int4 also quantise the inputs of matrix products. mxfp8 needs no text.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help='Text like what the model will see, as JSON lines: {"text": "..."} or {"input_ids": [...]}.  [default: the '
    "text that ships with sala-export]",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="Use at most this many lines of the text.  [default: 16 of your text, or all of the text that ships]",
)
@click.option(
    "--sequence-length",
    type=click.IntRange(min=1),
    help="Use at most this many tokens of each line.  [default: 512 in your text; in the text that ships 1024 in "
    "lines made to be long, and 192 in others]",
)
@click.option(
    "--algorithm", help="How to round the weights, see docs/calibration.md.  [default: the best one for the precision]"
)
@click.option(
    "--include-gates/--exclude-gates",
    default=None,
    help="Quantise the output gates, z_proj and o_gate, like the projections beside them, or keep them in 16 bits.  "
    "[default: include them in mxfp8, exclude them in others]",
)
@output_option(required=False, text="Directory to write.  [default: MODEL-PRECISION]")
@force_option
@click.pass_obj
def quantize(
    console: Console,
    model: str,
    revision: str | None,
    precision: str,
    calibration: Path | None,
    samples: int | None,
    sequence_length: int | None,
    algorithm: str | None,
    include_gates: bool | None,
    output: Path | None,
    force: bool,
) -> None:
    """Quantise a checkpoint on any machine, with scales measured on your text.

    The command works layer by layer, so it never holds the whole model in memory. If it is interrupted, run it again:
    it keeps the layers that are finished. In mxfp8 it only rounds weights, so it takes no text and little time.

    For example:

    \b
      sala-export quantize --precision fp8 -o sala-fp8
      sala-export quantize --model my-checkpoint --precision int4 --calibration text.jsonl
      sala-export quantize --precision mxfp8
    """
    from ..building.pipeline import quantize_model
    from ..building.requests import ModelRequest
    from ..calibration.layer import QuantizationRecipe
    from ..calibration.samples import SampleRequest

    def say(line: str) -> None:
        console.print(line, soft_wrap=True)

    recipe = QuantizationRecipe.from_options(precision, algorithm=algorithm, include_gates=include_gates)
    request = ModelRequest(model=model, revision=revision)
    with progress_display(console) as on_progress:
        result = quantize_model(
            request,
            recipe,
            SampleRequest(file=calibration, samples=samples, sequence_length=sequence_length, say=say),
            output or Path(f"{request.name}-{recipe.precision}"),
            force=force,
            on_progress=on_progress,
        )
    console.print(f"{result.seconds:.0f} s, peak memory {format_bytes(result.peak_host_bytes)}", soft_wrap=True)
    click.echo(str(result.directory))
