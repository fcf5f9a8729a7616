"""`sala-export doctor`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from ..errors import printable_text
from .options import BundlePath, json_option
from .output import print_json

_CONTEXT = 8192


@click.command()
@click.argument("bundle", type=BundlePath(), required=False)
@json_option
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Show what this machine has, which runtimes would run, and why the others would not.

    It also says in which precisions 9B fits the memory of this machine without a GPU, at a context of 8K.
    With BUNDLE, the answer is for this bundle. Put the output into a bug report: it names no user and no file of yours
    but the libraries and the bundle. For example:

    \b
      sala-export doctor
      sala-export doctor sala.sala --json
    """
    from ..bundle.reader import Bundle
    from ..diagnosis.report import as_text, diagnose
    from ..engine.host import total_host_bytes
    from ..planner.cpu import needs
    from ..planner.published import PUBLISHED_CONFIG

    needed = [asdict(need) for need in needs(PUBLISHED_CONFIG, total_host_bytes(), _CONTEXT)]
    found = diagnose(None if bundle is None else Bundle.open(bundle), needed)
    if as_json:
        print_json(found)
    else:
        click.echo(printable_text(as_text(found)))
