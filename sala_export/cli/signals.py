"""Ctrl-C, SIGTERM and the loss of the terminal: they end the work by an exception, so that everything cleans up."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_received: list[int] = []
"""Signals that asked this process to end its work."""

_raises_at_once = True


def leave_at_once() -> None:
    """Let a signal end the process on the spot: nothing has begun yet, or all is done."""
    _handle(lambda number, frame: os._exit(128 + number))


def interrupt_work() -> None:
    """Let a signal raise KeyboardInterrupt in the main thread."""
    _handle(_interrupt)
    sys.unraisablehook = _not_lost


@contextmanager
def held_back() -> Iterator[None]:
    """Hold KeyboardInterrupt back until `raise_received` or the end of the block, so that no step is cut in two."""
    with _raising_at_once(False):
        yield
    raise_received()


@contextmanager
def raising() -> Iterator[None]:
    """Inside `held_back`, let a signal raise KeyboardInterrupt at once again, for example while a read waits."""
    with _raising_at_once(True):
        raise_received()
        yield


def raise_received() -> None:
    """Raise KeyboardInterrupt for a signal that was held back."""
    if _received:
        raise KeyboardInterrupt


def was_interrupted() -> bool:
    """True if a signal has raised KeyboardInterrupt, whatever a library has made of it."""
    return bool(_received)


def forget_interrupt() -> bool:
    """Forget Ctrl-C, where it ends a part of the work and not the program. False if another signal came, too."""
    if any(number != signal.SIGINT for number in _received):
        return False
    _received.clear()
    return True


def exit_code_of_signal() -> int:
    """The exit code after KeyboardInterrupt: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP."""
    return 128 + (_received[-1] if _received else signal.SIGINT)


def _handle(handler: Callable[[int, FrameType | None], object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Whoever started the process may have them ignored, as `nohup` does.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _received.append(number)
    if _raises_at_once:
        raise KeyboardInterrupt


@contextmanager
def _raising_at_once(value: bool) -> Iterator[None]:
    global _raises_at_once
    before, _raises_at_once = _raises_at_once, value
    try:
        yield
    finally:
        _raises_at_once = before


def _not_lost(event: sys.UnraisableHookArgs) -> None:
    """Where the exception of a signal cannot go on, for example out of a finaliser, it is raised again after it."""
    if event.exc_type is KeyboardInterrupt and _received:
        signal.raise_signal(_received[-1])
    else:
        sys.__unraisablehook__(event)
