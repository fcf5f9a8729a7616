"""What a parser reports of an answer, and the log that parsers write it to."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass
from typing import TypeAlias

_ID_CHARACTERS = string.ascii_letters + string.digits
_ID_LENGTH = 24


@dataclass(frozen=True, slots=True)
class Content:
    """The next piece of what the model says to the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """The next piece of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool, without its arguments."""

    index: int
    """Place among the calls of the answer, from 0."""
    id: str
    """`call_` and 24 random letters and digits."""
    name: str
    """Function that the model calls. It need not be among the tools of the request."""


@dataclass(frozen=True, slots=True)
class ToolCallBegun(ToolCall):
    """The model calls a tool. Its arguments follow."""


@dataclass(frozen=True, slots=True)
class ToolArguments:
    """The next piece of a call's arguments. All pieces of one call together are one JSON object."""

    index: int
    """The call that they belong to."""
    text: str


Event: TypeAlias = Content | Reasoning | ToolCallBegun | ToolArguments


class EventLog:
    """Collects events. Pieces of one kind that follow each other become one event."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._kind: type[Content] | type[Reasoning] | type[ToolArguments] = Content
        self._pieces: list[str] = []
        self.calls = 0
        """Calls that have begun."""

    def content(self, text: str) -> None:
        """Report text for the user."""
        self._add(Content, text)

    def reasoning(self, text: str) -> None:
        """Report what the model thinks."""
        self._add(Reasoning, text)

    def begin_call(self, name: str) -> None:
        """Report a call. It is the one that `arguments` speaks of until the next."""
        self._join()
        call_id = "call_" + "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
        self._events.append(ToolCallBegun(self.calls, call_id, name))
        self.calls += 1

    def arguments(self, text: str) -> None:
        """Report a piece of the arguments of the latest call."""
        self._add(ToolArguments, text)

    def take(self) -> list[Event]:
        """Hand over the events since the last time."""
        self._join()
        events, self._events = self._events, []
        return events

    def _add(self, kind: type[Content] | type[Reasoning] | type[ToolArguments], text: str) -> None:
        if kind is not self._kind:
            self._join()
            self._kind = kind
        if text:
            self._pieces.append(text)

    def _join(self) -> None:
        if not self._pieces:
            return
        text = "".join(self._pieces)
        self._pieces = []
        if self._kind is ToolArguments:
            self._events.append(ToolArguments(self.calls - 1, text))
        else:
            self._events.append(Reasoning(text) if self._kind is Reasoning else Content(text))
