"""The standard streams of the program: every write is checked, and no file ever takes their place."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import time
from typing import TYPE_CHECKING

from ..errors import SalaError
from .signals import was_interrupted

if TYPE_CHECKING:
    from typing_extensions import Buffer

_STDOUT, _STDERR = 1, 2

_LOOK_AGAIN_MS = 100

PIPE_EXIT_CODE = 141
"""That of a program which SIGPIPE ends."""


class OutputError(SalaError):
    """Standard output cannot be written."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"standard output cannot be written: {error.strerror}: free some space there, or send it elsewhere"
        )
        self.reader_is_gone = error.errno == errno.EPIPE
        if self.reader_is_gone:
            self.exit_code = PIPE_EXIT_CODE


class _Stream(io.FileIO):
    """A standard stream. It waits where another program has made it non-blocking."""

    def write(self, data: Buffer, /) -> int:
        while (count := super().write(data)) is None:
            select.select((), (self,), ())
        return count


class _Output(_Stream):
    """Raises `OutputError`, which nobody takes for an error of a file."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OutputError(error) from None


class _Messages(_Stream):
    """Drops what cannot be written: work must not end because nobody can be told about it.

    After a signal it drops what nobody reads, too, for the signal has to end the work.
    """

    def __init__(self) -> None:
        super().__init__(_STDERR, "w", closefd=False)
        self._descriptor = _unblocked_terminal() if self.isatty() else _STDERR
        self._ready = select.poll()
        self._ready.register(self._descriptor, select.POLLOUT)

    def write(self, data: Buffer, /) -> int:
        block = memoryview(data).cast("B")
        while True:
            try:
                # A signal may interrupt another thread than this one.
                if self._ready.poll(_LOOK_AGAIN_MS):
                    # A pipe that is ready takes so much at once.
                    return os.write(self._descriptor, block[: select.PIPE_BUF])
            except BlockingIOError:
                time.sleep(_LOOK_AGAIN_MS / 1000)
            except OSError:
                return len(block)
            if was_interrupted():
                return len(block)


def _unblocked_terminal() -> int:
    """Open the terminal of standard error again: one that is nearly full would block, also where poll finds room.

    Programs that share standard error must not find it non-blocking. Returns it as it is if it cannot be opened.
    """
    try:
        return os.open(f"/proc/self/fd/{_STDERR}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return _STDERR


def prepare() -> None:
    """Take over the standard streams of the process. Leaves it with exit code 2 if standard output is closed."""
    closed = _fill_closed()
    sys.stderr = _text(_Messages(), line_buffering=True)
    if _STDOUT in closed:
        sys.stderr.write("error: standard output is closed: send it to a file, a pipe or /dev/null\n")
        os._exit(2)
    sys.stdout = _text(_Output(_STDOUT, "w", closefd=False), line_buffering=os.isatty(_STDOUT))


def discard_output() -> None:
    """Let what standard output still holds go nowhere, so that the end of the process does not try it again."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, _STDOUT)
    os.close(null)


def _fill_closed() -> set[int]:
    """Open /dev/null in place of closed standard streams, so that no file gets their numbers; returns those."""
    closed = set()
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            closed.add(os.open(os.devnull, os.O_RDWR))  # the lowest free number, which is this one
    for descriptor in closed:
        os.set_inheritable(descriptor, True)
    return closed


def _text(raw: io.FileIO, *, line_buffering: bool) -> io.TextIOWrapper:
    # A path that the terminal's encoding lacks must not fail a command that has done its work.
    buffer = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, errors="backslashreplace", line_buffering=line_buffering)
