"""`sala-export trtexec`"""

from __future__ import annotations

from pathlib import Path

import click

from .options import BundlePath, Tokens, force_option, output_option


@click.command()
@click.argument("bundle", type=BundlePath())
@output_option(required=True, text="Directory to write.")
@click.option(
    "--context",
    type=Tokens(),
    default=None,
    show_default="64K, or what the engine takes if that is less",
    help="Tokens that the caches of a timed step have room for. The tools keep them twice.",
)
@force_option
def trtexec(bundle: Path, output: Path, context: int | None, force: bool) -> None:
    """Write scripts with which trtexec, or tensorrt_rtx, builds and times the engine of a bundle.

    One script builds, and one for each profile times it, with valid inputs of a step. You need no GPU to write them.
    The command prints their paths. For example:

    \b
      sala-export trtexec sala.sala -o trtexec-sala
      sala-export trtexec sala.sala -o trtexec-sala --context 128K
    """
    from ..bundle.reader import Bundle
    from ..engine.trtexec import BUILD_SCRIPT, write_tool_scripts
    from ..files import absolute
    from ..installation import plugin_library
    from ..staging import staged_directory

    opened = Bundle.open(bundle)
    with staged_directory(output, marker=BUILD_SCRIPT, force=force) as folder:
        scripts = write_tool_scripts(opened.manifest, absolute(bundle), plugin_library(), folder, context=context)
    for script in scripts:
        click.echo(str(output / script.name))
