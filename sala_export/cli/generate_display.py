"""The progress of a prompt on stderr: tokens, tokens/s, and the time left if it is known."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

if TYPE_CHECKING:
    from ..runtime.session import PrefillProgress


class PrefillDisplay:
    """Shows a bar on a terminal, and elsewhere a line every ten seconds. By default, both end with a line of totals."""

    INTERVAL_S = 10.0

    def __init__(self, console: Console, tokens_expected: Callable[[], float | None], *, totals: bool = True) -> None:
        """Args: tokens_expected: estimates the length of a prompt that is not known yet, or returns None; totals: end
        with their line."""
        self._totals = totals
        self._console = console
        self._tokens_expected = tokens_expected
        self._shown = time.monotonic()
        self._last: PrefillProgress | None = None
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[amounts]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("prefill", total=None, amounts="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if kind is None and self._totals and self._last is not None:
            seconds = f"{self._last.seconds:.1f} s"
            self._print(f"prefill: {_tokens(self._last.tokens_done)} in {seconds}, {_rate(self._last)}")

    def __call__(self, progress: PrefillProgress) -> None:
        """Show how far the prefill is. The session calls this after every chunk."""
        self._last = progress
        expected = self._tokens_expected() if progress.tokens_total is None else progress.tokens_total
        amounts = f"{_tokens(progress.tokens_done, progress.tokens_total)}, {_rate(progress)}"
        if expected is not None:
            left = max(0.0, expected - progress.tokens_done) / progress.tokens_per_second
            amounts += f", {left:.0f} s left"
        self._bar.update(self._task, total=expected, completed=progress.tokens_done, amounts=amounts)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._shown >= self.INTERVAL_S:
            self._shown = now
            self._print(f"prefill: {amounts}")

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True)


def _tokens(done: int, total: int | None = None) -> str:
    return f"{done:,} tokens" if total is None else f"{done:,} of {total:,} tokens"


def _rate(progress: PrefillProgress) -> str:
    return f"{progress.tokens_per_second:,.0f} tokens/s"
