"""A text that arrives in pieces, read as if all of it were there.

Whoever reads is a generator. It yields where it needs more text, and goes on when a piece has come. So a grammar is
written as straight code, and where its text is cut makes no difference.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeAlias, TypeVar

Result = TypeVar("Result")
Steps: TypeAlias = Generator[None, None, Result]
"""A reader on its way. It yields when it has used up the text and the text has not ended."""

SPACES = " \t\r\n"
"""White space: what is dropped beside markers, and what JSON and XML allow between their parts."""
SPACE = re.compile(f"[{SPACES}]+")


class Reader:
    """Reads a text from its beginning to its end, and remembers what was read since the last `settle`."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._ended = False
        self._unsettled: list[str] = []

    def feed(self, text: str) -> None:
        """Add the next piece of the text."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def end(self) -> None:
        """Say that no more text will come."""
        self._ended = True

    @property
    def ended(self) -> bool:
        """True if no more text will come. What has come may not have been read yet."""
        return self._ended

    @property
    def at_end(self) -> bool:
        """True if all of the text was read and no more will come."""
        return self._ended and self._at == len(self._text)

    def settle(self) -> str:
        """Return what was read since the last time: it is accounted for now."""
        text = self.unsettled()
        self._unsettled = []
        return text

    def unsettled(self) -> str:
        """Return what was read since the last `settle`."""
        return "".join(self._unsettled)

    def take(self, pattern: re.Pattern[str]) -> str:
        """Read what matches a pattern here in the text that has come. It may be empty, and waits for nothing."""
        match = pattern.match(self._text, self._at)
        return self._read(match[0]) if match else ""

    def peek(self) -> Steps[str]:
        """Return the next character without reading it. It is empty at the end of the text."""
        while self._at == len(self._text) and not self._ended:
            yield
        return self._text[self._at : self._at + 1]

    def run(self, pattern: re.Pattern[str], *, limit: int | None = None) -> Steps[str]:
        """Read characters of one kind, up to the first of another kind.

        Args: pattern: a run of such characters. limit: a longer run is read no further than the piece of text in which
        it gets longer.
        """
        pieces = []
        length = 0
        while limit is None or length <= limit:
            pieces.append(self.take(pattern))
            length += len(pieces[-1])
            if self._at < len(self._text) or self._ended:
                break
            yield
        return "".join(pieces)

    def sees(self, *markers: str) -> Steps[str]:
        """Return which of some markers stands here, without reading it. It is empty if none does.

        Args: markers: none is the beginning of another.
        """
        longest = max(map(len, markers), default=0)
        while True:
            here = self._text[self._at : self._at + longest]
            for marker in markers:
                if here.startswith(marker):
                    return marker
            if self._ended or not any(marker.startswith(here) for marker in markers):
                return ""
            yield

    def reads(self, *markers: str) -> Steps[str]:
        """Read one of some markers, if one stands here, and return it. Else nothing is read, and the result is empty.

        Args: markers: none is the beginning of another.
        """
        return self._read((yield from self.sees(*markers)))

    def _read(self, text: str) -> str:
        self._at += len(text)
        if text:
            self._unsettled.append(text)
        return text
