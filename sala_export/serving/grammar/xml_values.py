"""Values as the text of an XML element, for models that write parameters so.

A string stands there as it is, with entities for `<` and `&`, or in a CDATA section. All other values are JSON. Where a
parameter may be a string, readers take any text for one, so that it is always written as one.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from llguidance import regex_to_lark

from .lark import Lark, json_value, quoted
from .shapes import Shape, Shapes, rooted

_CHARACTER = "([^<&]|&(lt|gt|amp|quot|apos);)"
_SECTION = r"/<!\[CDATA\[(?s:.*)\]\]>/"
_DAY = r"(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31"
_LEAP_YEAR = r"[0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00"
_DATE = rf"([0-9]{{4}}-({_DAY})|({_LEAP_YEAR})-02-29)"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_OCTET = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "ipv4": rf"({_OCTET}\.){{3}}{_OCTET}",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}


class XmlValues:
    """Adds rules for the values of one schema to a grammar."""

    def __init__(self, lark: Lark, shapes: Shapes, owner: str) -> None:
        self._lark, self._shapes, self._owner = lark, shapes, owner

    def value(self, schema: Any, pointer: str) -> str:
        """The rule for the text of an element whose values a part of the schema allows."""
        shapes = self._shapes.of(schema, pointer)
        texts = [text for shape in shapes if _is_text(shape) for text in self._texts(shape)]
        if texts:
            return self._lark.rule(" | ".join(texts), self._owner)
        part = rooted({"anyOf": [_schema(shape) for shape in shapes]}, self._shapes.root)
        return self._lark.rule(json_value(part), self._owner)

    def _texts(self, shape: Shape) -> Iterator[str]:
        if shape.kind == "literal":
            yield quoted(escape(shape.value, quote=False))
            return
        if not shape.schema:
            yield f"/{_CHARACTER}*/"
            yield self._lark.shared(_SECTION, lazy=True)
            return
        terminals = list(self._terminals(shape))
        yield self._lark.terminal(" & ".join(terminals), self._owner)

    def _terminals(self, shape: Shape) -> Iterator[str]:
        """Regular expressions that a text has to match all."""
        constraints = shape.schema
        if "pattern" in constraints or "format" in constraints:
            yield "/[^<&]*/"
        least, most = constraints.get("minLength", 0), constraints.get("maxLength", "")
        yield f"/{_CHARACTER}{{{least},{most}}}/"
        if "pattern" in constraints:
            yield f"/{_searched(constraints['pattern'])}/"
        if "format" in constraints:
            form = constraints["format"]
            if form not in _FORMATS:
                what = f'format "{form}" is not supported in this format'
                raise self._shapes.error(shape.pointer, what, f"use one of {', '.join(_FORMATS)}")
            yield f"/{_FORMATS[form]}/"


def _is_text(shape: Shape) -> bool:
    return shape.kind in ("any", "string") or (shape.kind == "literal" and isinstance(shape.value, str))


def _schema(shape: Shape) -> dict[str, Any]:
    return {"const": shape.value} if shape.kind == "literal" else {"type": shape.kind, **shape.schema}


def _searched(pattern: str) -> str:
    """The expression for texts in which a pattern of JSON schema is found, or a part of them where it has choices."""
    is_start = pattern.startswith("^")
    body = pattern[is_start:]
    escapes = len(body[:-1]) - len(body[:-1].rstrip("\\"))
    is_end = body.endswith("$") and escapes % 2 == 0
    body = body[:-1] if is_end else body
    before, after = "" if is_start else "(?s:.*)", "" if is_end else "(?s:.*)"
    return f"{before}({regex_to_lark(body, 'dw')}){after}"
