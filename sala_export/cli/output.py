"""What commands show: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ..errors import printable
from ..progress import ProgressCallback
from ..specs import format_bytes

_PHASES = {
    "write": "writing weights",
    "copy": "copying weights",
    "graph": "writing graphs",
    "hash": "hashing weights and files",
    "quantize": "quantising layers",
    "verify": "comparing layers",
    "load": "loading weights",
}
_QUICK_SECONDS = 1.0


JSON_SCHEMA_VERSION = 1
"""Version of the JSON objects that commands print. It grows when a field changes its name or meaning, or goes."""


def print_json(fields: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout, with the version of its schema."""
    click.echo(json.dumps({"schema_version": JSON_SCHEMA_VERSION, **fields}, indent=2))


class _PlainConsole(Console):
    """Prints strings as they are: no markup, and control characters of names from bundles escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def stderr_console() -> Console:
    """Create the console for progress and messages. It respects NO_COLOR and plain pipes."""
    return _PlainConsole(stderr=True, highlight=False, markup=False, emoji=False)


def table_console(width: int = 200) -> Console:
    """Create the console for tables on stdout. They keep their columns when they go to a file or a pipe."""
    is_terminal = Console().is_terminal
    return _PlainConsole(highlight=False, markup=False, emoji=False, width=None if is_terminal else width)


def show_log(console: Console, verbosity: int) -> None:
    """Send the library's log to stderr: warnings only, with -v progress messages, with -vv everything."""
    root = logging.getLogger("sala_export")
    root.handlers[:] = [_ConsoleHandler(console)]
    root.setLevel({0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG))


class _ConsoleHandler(logging.Handler):
    """One line for each record, above any progress bars."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {record.getMessage()}"
        self.console.print(text, soft_wrap=True)


@contextmanager
def progress_display(console: Console) -> Iterator[ProgressCallback]:
    """Show phases as bars with rate and time left on a terminal, as plain lines elsewhere."""
    if not console.is_terminal:
        yield _PlainLines(console)
        return
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as bars:
        yield _Bars(bars)


def load_progress(on_progress: ProgressCallback) -> Callable[[int, int], None]:
    """Make a callback that shows how many bytes of weights are loaded. A load of less than a second shows nothing."""
    started = time.monotonic()

    def show(done: int, total: int) -> None:
        if time.monotonic() - started > _QUICK_SECONDS:
            on_progress("load", done, total, "bytes")

    return show


class _Bars:
    """One bar for each phase."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}

    def __call__(self, phase: str, done: int, total: int, unit: str = "steps") -> None:
        if phase not in self.tasks:
            self.tasks[phase] = self.bars.add_task(_PHASES.get(phase, phase), total=total, amount="")
        amount = f"{format_bytes(done)} of {format_bytes(total)}" if unit == "bytes" else f"{done} of {total}"
        self.bars.update(self.tasks[phase], completed=done, total=total, amount=amount)


class _PlainLines:
    """A line when a phase begins and ends, and every ten seconds between."""

    INTERVAL_S = 10.0

    def __init__(self, console: Console) -> None:
        self.console = console
        self.phase = ""
        self.started = self.shown = 0.0

    def __call__(self, phase: str, done: int, total: int, unit: str = "steps") -> None:
        now = time.monotonic()
        name = _PHASES.get(phase, phase)
        if phase != self.phase:
            self.phase, self.started, self.shown = phase, now, now
            self.console.print(f"{name} ...", soft_wrap=True)
        elapsed = now - self.started
        if done >= total:
            self.console.print(f"{name}: done in {elapsed:.1f} s", soft_wrap=True)
            self.phase = ""
        elif now - self.shown >= self.INTERVAL_S and done:
            self.shown = now
            left = elapsed / done * (total - done)
            self.console.print(f"{name}: {100 * done // total} %, {left:.0f} s left", soft_wrap=True)
