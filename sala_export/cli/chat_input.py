"""What somebody types into `chat`, or a program writes into it, message by message."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress

from ..errors import RequestError, SessionError
from .signals import raising

_SEVERAL_LINES = '"""'


class Messages:
    """Messages from standard input: each line is one, or all lines between two marks of three quotes."""

    def __init__(self) -> None:
        """Raises: RequestError if standard input is closed."""
        if sys.stdin is None:
            raise RequestError("standard input is closed: chat reads its messages from there")
        self.is_terminal = sys.stdin.isatty()
        if self.is_terminal:
            # `input` then edits lines and remembers them. Some builds of Python come without it.
            with suppress(ImportError):
                importlib.import_module("readline")

    def read(self) -> str | None:
        """The next message. None at the end of the input. A signal counts while it waits.

        Raises: SessionError if it is not UTF-8.
        """
        line = self._line("> ")
        if line is None or not line.startswith(_SEVERAL_LINES):
            return line
        lines = [line.removeprefix(_SEVERAL_LINES)]
        while not lines[-1].endswith(_SEVERAL_LINES):
            line = self._line(". ")
            if line is None:
                break
            lines.append(line)
        return "\n".join(lines).removesuffix(_SEVERAL_LINES)

    def _line(self, prompt: str) -> str | None:
        try:
            with raising():
                if self.is_terminal:
                    return input(prompt if sys.stdout.isatty() else "")
                line = sys.stdin.buffer.readline()
                return line.decode().rstrip("\r\n") if line else None
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise SessionError(f"the message is not UTF-8 at byte {error.start}, counted from 0") from None
