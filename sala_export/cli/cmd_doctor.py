"""`sala-export doctor`"""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import printable_text
from .options import json_option
from .output import print_json


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@json_option
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Show what this machine has, which runtimes would run, and why the others would not.

    With BUNDLE, the answer is for this bundle. Put the output into a bug report: it names no user and no file of yours
    but the libraries and the bundle. For example:

    \b
      sala-export doctor
      sala-export doctor sala.sala --json
    """
    from ..bundle.reader import Bundle
    from ..diagnosis.report import as_text, diagnose

    found = diagnose(None if bundle is None else Bundle.open(bundle))
    if as_json:
        print_json(found)
    else:
        click.echo(printable_text(as_text(found)))
