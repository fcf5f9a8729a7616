"""The calls of MiniCPM5: `<function name="..."><param name="...">...</param></function>`."""

from __future__ import annotations

import re

from .events import EventLog
from .reader import SPACE, SPACES, Reader, Steps
from .tools import NAME_LIMIT, ArgumentWriter, Tools, is_name

_ATTRIBUTE = {'"': re.compile(r'[^"<>\n]+'), "'": re.compile(r"[^'<>\n]+")}
_TEXT = re.compile(r"[^<]+")
_IN_CDATA = re.compile(r"[^\]]+")
_ENTITY = re.compile(r"&(?:(?P<name>lt|gt|amp|quot|apos)|#(?P<code>[0-9]{1,7})|#x(?P<hex>[0-9a-fA-F]{1,6}));")
_NAMED = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}


def read_call(reader: Reader, log: EventLog, tools: Tools) -> Steps[None]:
    """Read what follows `<function`, up to the last parameter.

    The call begins when its tag is whole, and each parameter is handed on when it is closed. Its type follows from the
    schema (`Tools.json_of_text`).
    """
    name = yield from _name_attribute(reader)
    if name is None or not is_name(name):
        return
    log.begin_call(name)
    reader.settle()
    arguments = ArgumentWriter(log)
    yield from reader.run(SPACE)
    while (yield from reader.reads("<param")):
        parameter = yield from _name_attribute(reader)
        value = None if parameter is None else (yield from _value(reader))
        if parameter is None or value is None:
            break
        arguments.add(parameter, tools.json_of_text(name, parameter, value))
        reader.settle()
        yield from reader.run(SPACE)
    arguments.close()


def _name_attribute(reader: Reader) -> Steps[str | None]:
    """Read ` name="..."` and the end of the tag. Returns the name, or None if something else stands here."""
    if not (yield from reader.run(SPACE)) or not (yield from reader.reads("name")):
        return None
    yield from reader.run(SPACE)
    if not (yield from reader.reads("=")):
        return None
    yield from reader.run(SPACE)
    quote = yield from reader.reads(*_ATTRIBUTE)
    if not quote:
        return None
    name = yield from reader.run(_ATTRIBUTE[quote], limit=NAME_LIMIT)
    if len(name) > NAME_LIMIT or not (yield from reader.reads(quote)):
        return None
    yield from reader.run(SPACE)
    return _unescaped(name) if (yield from reader.reads(">")) else None


def _value(reader: Reader) -> Steps[str | None]:
    """Read the text of a parameter and its end tag. Returns None if it is cut off.

    The end of the function ends it too, because small models forget `</param>`. Every other `<` is text. White space
    around CDATA is layout.
    """
    pieces: list[str] = []
    cdata = False
    while True:
        text = yield from _text(reader)
        if not cdata or text.strip(SPACES):
            pieces.append(_unescaped(text))
        end = yield from reader.sees("</param>", "</function>", "<![CDATA[")
        if end == "<![CDATA[":
            if not cdata:
                pieces = [piece for piece in pieces if piece.strip(SPACES)]
            cdata = True
            yield from reader.reads(end)
            pieces.append((yield from _cdata(reader)))
        elif end:
            if end == "</param>":
                yield from reader.reads(end)
            return "".join(pieces)
        else:
            return None


def _text(reader: Reader) -> Steps[str]:
    """Read text up to a tag that means something in a value, or to the end."""
    pieces = []
    while True:
        pieces.append((yield from reader.run(_TEXT)))
        if (yield from reader.sees("</param>", "</function>", "<![CDATA[")) or reader.at_end:
            return "".join(pieces)
        pieces.append((yield from reader.reads("<")))


def _cdata(reader: Reader) -> Steps[str]:
    """Read up to `]]>`."""
    pieces = []
    while True:
        pieces.append((yield from reader.run(_IN_CDATA)))
        if (yield from reader.reads("]]>")) or reader.at_end:
            return "".join(pieces)
        pieces.append((yield from reader.reads("]")))


def _unescaped(text: str) -> str:
    return _ENTITY.sub(_character, text)


def _character(match: re.Match[str]) -> str:
    """The character of an entity. What is no character stays as it is written."""
    if match["name"]:
        return _NAMED[match["name"]]
    code = int(match["code"]) if match["code"] else int(match["hex"], 16)
    return chr(code) if code < 0xD800 or 0xDFFF < code < 0x110000 else match[0]
