"""An answer, taken apart into text, thinking and calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from ...errors import RequestError
from .events import Event, EventLog
from .grammars import FORMATS, GRAMMARS, Grammar
from .reader import SPACE, SPACES, Reader, Steps
from .tools import Tools

# All markers begin with `<`, and white space before one goes with it.
_PLAIN = re.compile(r"(?:[^< \t\r\n]++|[ \t\r\n]++(?=[^< \t\r\n]))++")
_ANY = re.compile(r".", re.DOTALL)


class OutputParser(Protocol):
    """Takes apart an answer that arrives in pieces, cut anywhere. One parser is for one answer."""

    def push(self, text: str) -> list[Event]:
        """Take the next piece. Returns what is certain by now. Joined, the events do not depend on the cuts."""

    def finish(self) -> list[Event]:
        """Say that the answer has ended. Returns the rest of it. No piece may follow."""


def output_parser(
    format: str,  # noqa: A002 - the word of the options that name it
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    reasoning: bool = True,
    starts_in_reasoning: bool = False,
) -> OutputParser:
    """Return a parser for one answer.

    Thinking is recognised where no text stands between its marker and the beginning, a call or other thinking. Calls
    are recognised outside of thinking. A call of a function that is none of the tools is reported too, so that the
    client can tell the model. White space (space, tabulator, line feed, carriage return) directly before or behind a
    marker that is recognised is dropped, and any other is kept.

    No text makes a parser fail. None is lost but white space, comments between Python calls, and members of a JSON call
    that are neither its name nor its arguments:

    * What begins like a call and is none is content, as it is written.
    * A call that has begun and then breaks or is cut off keeps the arguments that were whole. Of nested JSON (`hermes`)
      it keeps every inner value that was whole, and of a text what there is. The brackets are closed, so the arguments
      are JSON. What follows is content, as it is written, without the end marker.
    * Brackets nested more than 64 deep break a call.

    Args: format: one of `FORMATS`. `none` makes everything content. tools: the tools of the request, in OpenAI's form.
    Without tools, calls are content as they stand. The schema of a parameter decides what a value without a type is
    (`minicpm5`), and the order of parameters what an argument without a name is (`minicpm4`). reasoning: False makes
    thinking content, with its markers. starts_in_reasoning: the prompt ends within thinking.
    Raises: RequestError for an unknown format, or a tool without a name.
    """
    if format not in FORMATS:
        raise RequestError(f"unknown format {format!r}: take one of {', '.join(FORMATS)}")
    known = Tools(tools)
    grammar = GRAMMARS.get(format)
    if grammar is None:
        return _Verbatim()
    return _Answer(grammar, known, reasoning=reasoning, starts_in_reasoning=starts_in_reasoning)


class _Verbatim:
    def __init__(self) -> None:
        self._log = EventLog()

    def push(self, text: str) -> list[Event]:
        self._log.content(text)
        return self._log.take()

    def finish(self) -> list[Event]:
        return []


class _Answer:
    def __init__(self, grammar: Grammar, tools: Tools, *, reasoning: bool, starts_in_reasoning: bool) -> None:
        self._grammar = grammar
        self._tools = tools
        self._reasoning = reasoning
        self._starts_in_reasoning = starts_in_reasoning
        self._thinking_ends = dict(grammar.thinking)
        self._reader = Reader()
        self._log = EventLog()
        self._after_marker = False
        """Nothing but white space, which is dropped, stands between here and a marker."""
        self._steps = self._read()

    def push(self, text: str) -> list[Event]:
        assert not self._reader.ended, "the answer has ended"
        self._reader.feed(text)
        return self._advance()

    def finish(self) -> list[Event]:
        self._reader.end()
        return self._advance()

    def _advance(self) -> list[Event]:
        next(self._steps, None)
        return self._log.take()

    def _read(self) -> Steps[None]:
        if self._starts_in_reasoning:
            # Some models repeat the marker that the prompt ends with.
            yield from self._read_thinking(tuple(self._thinking_ends.values()), repeated=tuple(self._thinking_ends))
        begin = (self._grammar.begin,) if self._tools else ()
        thinking_may_begin, in_block = True, False
        while True:
            later = (*begin, self._grammar.end) if in_block else begin
            first = (*later, *self._thinking_ends) if thinking_may_begin else later
            space, marker = yield from self._read_text(self._log.content, first, later)
            if not marker:
                self._log.content(space)
                return
            if marker in self._thinking_ends:
                self._log.content("" if self._reasoning else space + marker)
                yield from self._read_thinking((self._thinking_ends[marker],))
                thinking_may_begin = True
            elif marker == self._grammar.begin:
                in_block = yield from self._read_calls(space)
                thinking_may_begin = self._after_marker
            else:
                in_block, self._after_marker = False, True

    def _read_text(
        self, emit: Callable[[str], None], first: tuple[str, ...], later: tuple[str, ...]
    ) -> Steps[tuple[str, str]]:
        """Hand on text up to a marker or the end, and read the marker.

        Args: first: markers that are recognised before any text. later: those that are recognised behind it.
        Returns: the white space before the marker, unless it belongs to the marker before, and the marker, if any.
        """
        markers = first
        while True:
            # If there is no marker to wait for, white space is not held back.
            space = (yield from self._reader.run(SPACE)) if markers else ""
            if self._after_marker:
                space = ""
            self._reader.settle()
            marker = yield from self._reader.reads(*markers)
            if marker or not (yield from self._reader.peek()):
                return space, marker
            emit(space + (self._reader.take(_PLAIN) or self._reader.take(_ANY)))
            markers, self._after_marker = later, False

    def _read_thinking(self, ends: tuple[str, ...], repeated: tuple[str, ...] = ()) -> Steps[None]:
        """Read thinking, and the marker behind it. Args: repeated: markers that may stand at its beginning."""
        emit = self._log.reasoning if self._reasoning else self._log.content
        marker = ""
        first = (*ends, *repeated)
        while marker not in ends:
            self._after_marker = self._reasoning
            space, marker = yield from self._read_text(emit, first, ends)
            if not self._reasoning:
                emit(space + marker)
            elif not marker:
                emit(space)
            if not marker:
                return
            first = ends
        self._after_marker = self._reasoning

    def _read_calls(self, space: str) -> Steps[bool]:
        """Read what follows the marker of a call. What turns out to be none of a call is content.

        Args: space: white space before the marker.
        Returns: True if a call has begun.
        """
        calls = self._log.calls
        yield from self._grammar.read_calls(self._reader, self._log, self._tools)
        begun = self._log.calls > calls
        rest = self._reader.settle()
        self._after_marker = begun and not rest.strip(SPACES)
        if not self._after_marker:
            self._log.content(rest if begun else space + rest)
        return begun
