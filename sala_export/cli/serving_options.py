"""Options of those commands whose models answer many clients."""

from __future__ import annotations

import click

from .options import Bytes, Command, FiniteRange, Tokens


def answer_limits(command: Command) -> Command:
    """Add the options that say how much is answered at once, and what stays in memory."""
    for option in (
        click.option(
            "--max-tokens",
            type=Tokens(),
            default=4096,
            show_default=True,
            help="Tokens of an answer for which the client sets no limit.",
        ),
        click.option(
            "--max-cache",
            type=Bytes(),
            help="Memory for the caches of all contexts, e.g. 20G.  [default: what the GPU has, or half of what is "
            "free on the CPU]",
        ),
        click.option(
            "--max-contexts",
            type=click.IntRange(min=0),
            default=16,
            show_default=True,
            help="Contexts that stay in memory when they have been answered, so that later requests go on from them.",
        ),
        click.option("--max-context", type=Tokens(), help="Longest prompt with its answer, e.g. 64K or 1M."),
        click.option("--max-wait", type=FiniteRange(min=0), help="Seconds that a request may wait for its turn."),
        click.option(
            "--max-waiting",
            type=click.IntRange(min=0),
            default=256,
            show_default=True,
            help="Requests that may wait. One more is refused, over HTTP with status 429.",
        ),
        click.option(
            "--max-sessions",
            type=click.IntRange(min=1),
            help="Requests that are answered at once. The others wait.  [default: 8, or what the engine serves]",
        ),
    ):
        command = option(command)
    return command
