"""The calls of Hermes and Qwen: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

import json

from .events import EventLog
from .json_copy import JsonCopy, copied_json, is_json
from .reader import SPACE, SPACES, Reader, Steps
from .tools import Tools, is_name


def read_call(reader: Reader, log: EventLog, tools: Tools) -> Steps[None]:
    """Read what follows `<tool_call>`, up to the end of the object.

    The call begins as soon as the name is known. Its arguments are handed on while they are written if they follow the
    name, else when they are whole. They may also be a JSON text of an object, null, or missing, which is `{}`. Other
    members are left out.
    """
    yield from reader.run(SPACE)
    if (yield from reader.reads("{")):
        yield from _Call(reader, log).read()


class _Call:
    def __init__(self, reader: Reader, log: EventLog) -> None:
        self._reader = reader
        self._log = log
        self._begun = False
        self._arguments: str | None = None
        """Arguments that were read before the name."""
        self._written = False

    def read(self) -> Steps[None]:
        while (yield from self._member()):
            if (yield from self._reads(",")):
                continue
            if (yield from self._reads("}")) and self._begun:
                self._reader.settle()
            break
        if self._begun and not self._written:
            self._log.arguments("{}")

    def _member(self) -> Steps[bool]:
        """Read a member of the object. Returns False if it cannot be one of a call."""
        key = yield from copied_json(self._reader)
        if key is None or key.lstrip(SPACES)[0] != '"' or not (yield from self._reads(":")):
            return False
        yield from self._reader.run(SPACE)
        match json.loads(key):
            case "name" if not self._begun:
                return (yield from self._name())
            case "arguments" if not self._written and self._arguments is None:
                return (yield from self._arguments_of_call())
            case "name" | "arguments":
                return False
        return (yield from copied_json(self._reader)) is not None

    def _name(self) -> Steps[bool]:
        text = yield from copied_json(self._reader)
        name = json.loads(text) if text and text[0] == '"' else ""
        if not is_name(name):
            return False
        self._log.begin_call(name)
        self._begun = True
        if self._arguments is not None:
            self._write(self._arguments)
        self._reader.settle()
        return True

    def _arguments_of_call(self) -> Steps[bool]:
        if self._begun and (yield from self._reader.peek()) == "{":
            return (yield from self._streamed())
        text = yield from copied_json(self._reader)
        self._arguments = None if text is None else _object(text)
        if self._arguments is None:
            return False
        if self._begun:
            self._write(self._arguments)
            self._reader.settle()
        return True

    def _streamed(self) -> Steps[bool]:
        """Hand on the arguments while they are written. If they break off, they are closed."""
        copy = JsonCopy(self._reader, self._write)
        whole = yield from copy.copy()
        if not whole:
            self._log.arguments(copy.closing)
        return whole

    def _write(self, text: str) -> None:
        self._log.arguments(text)
        self._written = True
        self._reader.settle()

    def _reads(self, mark: str) -> Steps[str]:
        yield from self._reader.run(SPACE)
        return (yield from self._reader.reads(mark))


def _object(text: str) -> str | None:
    """The object that arguments of another form stand for. None if there is none."""
    if text == "null":
        return "{}"
    if text[0] == '"':
        text = json.loads(text).strip(SPACES)
    return text if text[:1] == "{" and is_json(text) else None
