"""The calls of MiniCPM3 and MiniCPM4: a fenced block of Python calls between two markers."""

from __future__ import annotations

import keyword
import re

from .events import EventLog
from .json_copy import DEPTH_LIMIT, json_of
from .python_literal import literal_value
from .reader import SPACE, Reader, Steps
from .tools import NAME_CHARACTERS, NAME_LIMIT, ArgumentWriter, Tools, is_name

_FENCE = "```"
_LANGUAGE = re.compile(r"[A-Za-z0-9_+-]+")
_BETWEEN_CALLS = re.compile(r"[ \t\r\n;]+")
_COMMENT = re.compile(r"[^\n]+")
_BLANK = re.compile(r"(?:\s|#[^\n]*+)*+")
_KEYWORD = re.compile(r"(?:\s|#[^\n]*+)*+(?P<name>[^\W\d][\w.-]*+)\s*+=")
_PLAIN = re.compile(r"""[^"'()\[\]{},#<]+""")
_IN_QUOTES = {"'": re.compile(r"[^'\\]+"), '"': re.compile(r'[^"\\]+')}
_ANY = re.compile(r".", re.DOTALL)


def read_calls(reader: Reader, log: EventLog, tools: Tools) -> Steps[None]:
    """Read what follows `<|tool_call_start|>`, up to the end of the fence, or of the last call if there is none.

    A call begins at its opening bracket, and each argument is handed on when its value is whole. Comments are dropped.
    """
    yield from reader.run(SPACE)
    if (yield from reader.reads(_FENCE)):
        yield from reader.run(_LANGUAGE, limit=NAME_LIMIT)
    before = log.calls
    while True:
        yield from _between_calls(reader)
        if log.calls > before:
            reader.settle()
            if (yield from reader.reads(_FENCE)):
                reader.settle()
                return
        name = yield from reader.run(NAME_CHARACTERS, limit=NAME_LIMIT)
        if not is_name(name) or not (yield from reader.reads("(")):
            return
        log.begin_call(name)
        reader.settle()
        if not (yield from _Arguments(reader, log, tools, name).read()):
            return


def _between_calls(reader: Reader) -> Steps[None]:
    yield from reader.run(_BETWEEN_CALLS)
    while (yield from reader.sees("#")):
        yield from reader.run(_COMMENT)
        yield from reader.run(_BETWEEN_CALLS)


class _Arguments:
    """What stands between the brackets of a call."""

    def __init__(self, reader: Reader, log: EventLog, tools: Tools, function: str) -> None:
        self._reader = reader
        self._arguments = ArgumentWriter(log)
        self._properties = list(tools.properties(function))
        self._by_place = iter(self._properties)

    def read(self) -> Steps[bool]:
        """Read up to the closing bracket. Returns False if the arguments are cut off, or one is no literal."""
        whole = False
        while not whole and (yield from _reads_argument(self._reader)):
            text = self._reader.unsettled()
            separator = yield from self._reader.peek()
            if not (separator == ")" and _BLANK.fullmatch(text)) and not self._add(text):
                break
            yield from self._reader.reads(separator)
            self._reader.settle()
            whole = separator == ")"
        self._arguments.close()
        return whole

    def _add(self, text: str) -> bool:
        """Hand on an argument. Returns False if it is none."""
        named = _KEYWORD.match(text)
        name = self._parameter(named["name"]) if named else next(self._by_place, None)
        try:
            value = json_of(literal_value(text[named.end() if named else 0 :]))
        except ValueError:
            return False
        if name is None:
            return False
        self._arguments.add(name, value)
        return True

    def _parameter(self, name: str) -> str:
        """The parameter that a name means: `from_` is `from`, because Python does not allow that as a name."""
        plain = name.removesuffix("_")
        return plain if keyword.iskeyword(plain) and name not in self._properties else name


def _reads_argument(reader: Reader) -> Steps[bool]:
    """Read up to a comma or closing bracket that ends an argument. Returns False if there is none, or it is too deep.

    Commas and brackets in texts, comments and inner brackets do not count. Outside of texts, `<` is a marker's.
    """
    depth = 0
    while True:
        yield from reader.run(_PLAIN)
        char = yield from reader.peek()
        if char in ("", "<") or depth > DEPTH_LIMIT:
            return False
        if depth == 0 and char in ",)]}":
            return char in ",)"
        if char == "#":
            yield from reader.run(_COMMENT)
        elif char in _IN_QUOTES:
            yield from _read_quoted(reader, char)
        else:
            reader.take(_ANY)
            depth += (char in "([{") - (char in ")]}")


def _read_quoted(reader: Reader, quote: str) -> Steps[None]:
    """Read a text with its quotes, one or three on each side."""
    end = quote * 3
    # Three quotes are no beginning of one quote, so they are asked for one by one.
    if not (yield from reader.reads(end)):
        yield from reader.reads(quote)
        end = quote
    while True:
        yield from reader.run(_IN_QUOTES[quote])
        if (yield from reader.reads(end)) or reader.at_end:
            return
        if (yield from reader.reads("\\")):
            yield from reader.peek()
        reader.take(_ANY)
