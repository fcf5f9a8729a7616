"""JSON of a model, copied while it is written, in pieces after which it can be closed at any time."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from .reader import SPACE, SPACES, Reader, Steps

DEPTH_LIMIT = 64
"""Brackets within brackets that a value may have."""
_SCALAR_LIMIT = 1000
"""Characters of a number. Python itself refuses to read more than 4300 digits."""
_SCALAR_CHARACTERS = re.compile(r"[-+.0-9A-Za-z]+")
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_PLAIN = re.compile(r'[^"\\\x00-\x1f\ud800-\udfff]+')
_ANY = re.compile(r".", re.DOTALL)
_HEX = re.compile(r"[0-9a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CLOSING = {"{": "}", "[": "]"}


def json_of(value: Any) -> str:
    """Write a value of None, numbers, texts, lists, tuples and dicts as JSON that UTF-8 can encode.

    Raises: ValueError for a number that JSON does not have.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # As escapes, the halves of a pair become one character again for whoever reads the JSON.
    return _SURROGATE.sub(lambda half: _escaped(half[0]), text)


def is_json(text: str) -> bool:
    """True if a text is one JSON value as it stands, up to white space around it, and not nested too deep."""
    reader = Reader()
    reader.feed(text)
    reader.end()
    pieces: list[str] = []
    copy = JsonCopy(reader, pieces.append).copy()
    try:
        # The text has ended, so that there is nothing to wait for.
        next(copy)
    except StopIteration as result:
        return result.value is True and "".join(pieces).strip(SPACES) == text.strip(SPACES)
    raise AssertionError("waits for text after its end")


def copied_json(reader: Reader) -> Steps[str | None]:
    """Read one JSON value. Returns its text, or None if there is no value here, or no end of it."""
    pieces: list[str] = []
    return "".join(pieces) if (yield from JsonCopy(reader, pieces.append).copy()) else None


def _escaped(char: str) -> str:
    return f"\\u{ord(char):04x}"


class _Place(Enum):
    BEFORE_VALUE = auto()
    AFTER_VALUE = auto()
    BROKEN = auto()


class JsonCopy:
    """Copies one JSON value from a reader.

    The text is handed on up to a point at which brackets alone would make it a value: within a text, after a member,
    never within a key or a number. What models get wrong in texts is put right: a control character becomes its escape,
    and the backslash of an escape that JSON does not know is doubled.
    """

    def __init__(self, reader: Reader, emit: Callable[[str], None]) -> None:
        """Args: emit: gets each piece of the value. All that was read until then belongs to the pieces so far."""
        self._reader = reader
        self._emit = emit
        self._open: list[str] = []
        self._quoted = False
        self._pending: list[str] = []

    @property
    def closing(self) -> str:
        """What makes the pieces so far a JSON value, if the first was handed on."""
        return '"' * self._quoted + "".join(reversed(self._open))

    def copy(self) -> Steps[bool]:
        """Read the value, with white space before it. Returns False if it is broken, cut off or too deep.

        The reader then stands at the first character that cannot go on as JSON.
        """
        place = _Place.BEFORE_VALUE
        while place is not _Place.AFTER_VALUE or self._open:
            yield from self._space()
            place = yield from self._value() if place is _Place.BEFORE_VALUE else self._after_value()
            if place is _Place.BROKEN:
                return False
        return True

    def _value(self) -> Steps[_Place]:
        char = yield from self._reader.peek()
        if char and char in _CLOSING:
            return (yield from self._bracket(char))
        if char == '"':
            return _Place.AFTER_VALUE if (yield from self._string(handed_on=True)) else _Place.BROKEN
        scalar = yield from self._reader.run(_SCALAR_CHARACTERS, limit=_SCALAR_LIMIT)
        # A number that the end of the text cuts off would be another number.
        cut_off = bool(self._open) and self._reader.at_end
        if len(scalar) > _SCALAR_LIMIT or cut_off or not _SCALAR.fullmatch(scalar):
            return _Place.BROKEN
        self._hand_on(scalar)
        return _Place.AFTER_VALUE

    def _bracket(self, bracket: str) -> Steps[_Place]:
        if len(self._open) == DEPTH_LIMIT:
            return _Place.BROKEN
        yield from self._reader.reads(bracket)
        self._open.append(_CLOSING[bracket])
        self._hand_on(bracket)
        yield from self._space()
        if (yield from self._reader.peek()) == self._open[-1]:
            return (yield from self._after_value())
        return (yield from self._before_member())

    def _before_member(self) -> Steps[_Place]:
        """Read the key, if the member has one."""
        if self._open[-1] == "]":
            return _Place.BEFORE_VALUE
        yield from self._space()
        if not (yield from self._string(handed_on=False)):
            return _Place.BROKEN
        yield from self._space()
        return _Place.BEFORE_VALUE if (yield from self._pass_on(":")) else _Place.BROKEN

    def _after_value(self) -> Steps[_Place]:
        if (yield from self._pass_on(",")):
            return (yield from self._before_member())
        if (yield from self._pass_on(self._open[-1])):
            self._open.pop()
            self._hand_on("")
            return _Place.AFTER_VALUE
        return _Place.BROKEN

    def _string(self, *, handed_on: bool) -> Steps[bool]:
        """Read a text, and hand it on character by character if it is no key."""
        if not (yield from self._pass_on('"')):
            return False
        self._quoted = handed_on
        while True:
            if handed_on:
                self._hand_on("")
            if (yield from self._pass_on('"')):
                break
            if self._reader.at_end or not (yield from self._characters()):
                return False
        self._quoted = False
        if handed_on:
            self._hand_on("")
        return True

    def _characters(self) -> Steps[bool]:
        """Read the next characters of a text, of which there are some. Returns False in a cut-off escape."""
        plain = self._reader.take(_PLAIN)
        if plain:
            self._pending.append(plain)
            return True
        char = self._reader.take(_ANY)
        if char != "\\":
            self._pending.append(_escaped(char))
            return True
        return (yield from self._escape_sequence())

    def _escape_sequence(self) -> Steps[bool]:
        """Read what follows a backslash."""
        char = yield from self._reader.peek()
        if not char:
            return False
        if char == "u":
            self._reader.take(_ANY)
            return (yield from self._code_point())
        if char in '"\\/bfnrt':
            self._pending.append("\\" + self._reader.take(_ANY))
        else:
            self._pending.append("\\\\")
        return True

    def _code_point(self) -> Steps[bool]:
        r"""Read what follows `\u`."""
        digits = ""
        while len(digits) < 4:
            char = yield from self._reader.peek()
            if not char:
                return False
            if not _HEX.match(char):
                self._pending.append("\\\\u" + digits)
                return True
            digits += self._reader.take(_ANY)
        self._pending.append("\\u" + digits)
        return True

    def _space(self) -> Steps[None]:
        self._pending.append((yield from self._reader.run(SPACE)))

    def _pass_on(self, mark: str) -> Steps[str]:
        """Read a mark, if it stands here. It waits for what makes it safe."""
        read = yield from self._reader.reads(mark)
        self._pending.append(read)
        return read

    def _hand_on(self, text: str) -> None:
        self._pending.append(text)
        piece = "".join(self._pending)
        self._pending = []
        if piece:
            self._emit(piece)
