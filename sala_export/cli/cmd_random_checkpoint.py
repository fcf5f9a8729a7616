"""`sala-export random-checkpoint`"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from ..checkpoint.presets import PRESETS
from ..specs import QUANTIZED_PRECISIONS, Precision
from .output import progress_display


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--preset",
    type=click.Choice(sorted(PRESETS)),
    required=True,
    help="Size of the model: tiny for tests, 9b as published.",
)
@click.option("--layers", type=click.IntRange(min=1), help="Write only the first N layers of the preset.")
@click.option(
    "--precision",
    type=click.Choice([p.value for p in (Precision.BF16, *QUANTIZED_PRECISIONS)]),
    default=Precision.BF16.value,
    show_default=True,
    help="Type of the weights. Quantised types are stored as sala-export quantize stores them.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed. The same seed gives the same bytes.")
@click.option("--force", is_flag=True, help="Replace the directory if it exists already.")
@click.pass_obj
def random_checkpoint(
    console: Console, directory: Path, preset: str, layers: int | None, precision: str, seed: int, force: bool
) -> None:
    """Write a checkpoint with random weights, so that you can try every command.

    It has the same layout as the published model on the Hugging Face hub.

    For example:

    \b
      sala-export random-checkpoint tiny --preset tiny
    """
    from ..checkpoint.random_checkpoint import write_random_checkpoint

    with progress_display(console) as on_progress:
        write_random_checkpoint(
            directory,
            preset,
            layers=layers,
            seed=seed,
            precision=Precision(precision),
            force=force,
            progress=on_progress,
        )
    click.echo(str(directory))
