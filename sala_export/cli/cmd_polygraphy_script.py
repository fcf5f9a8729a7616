"""`sala-export polygraphy-script`"""

from __future__ import annotations

from pathlib import Path

import click

from .options import SEED, BundlePath, Tokens, force_option, output_option


@click.command()
@click.argument("bundle", type=BundlePath())
@output_option(required=True, text="Script to write (.py).")
@click.option("--tokens", type=Tokens(), default=16, show_default=True, help="Tokens of the step.")
@click.option("--past", type=Tokens(), default=0, show_default=True, help="Tokens that the step finds in its caches.")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed of the token ids.")
@force_option
def polygraphy_script(bundle: Path, output: Path, tokens: int, past: int, seed: int, force: bool) -> None:
    """Write a script that gives Polygraphy the inputs, the TensorRT network and the configuration of a bundle.

    Polygraphy takes it for --data-loader-script, --trt-config-script and as a model. For example:

    \b
      sala-export polygraphy-script sala.sala -o step.py --tokens 64

    Then `polygraphy run sala.sala/graph/cpu.onnx --sala --data-loader-script step.py` runs the step.
    docs/elsewhere.md has more.
    """
    from ..files import absolute
    from ..interop.polygraphy.script import write_script

    write_script(absolute(bundle), output, tokens=tokens, past=past, seed=seed, force=force)
    click.echo(str(output))
