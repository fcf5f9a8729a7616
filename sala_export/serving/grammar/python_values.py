"""Values as Python literals, for models that write calls of Python functions.

Strings and numbers of JSON are also those of Python: a grammar of the library writes no `\\/` in strings and no halves
of surrogate pairs, which Python reads in another way. The three names are True, False and None.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .lark import Lark, json_value, quoted
from .limits import MOST_NESTING
from .shapes import Shape, Shapes

_COMMA, _COLON = "/, ?/", "/: ?/"
_NAMES = {None: "None", True: "True", False: "False"}
_STRING = json_value({"type": "string"})
_NUMBERS = {
    "integer": "/-?(0|[1-9][0-9]{0,99})/",
    "number": r"/-?(0|[1-9][0-9]{0,99})(\.[0-9]{1,99})?([eE][+-]?[0-9]{1,2})?/",
}
"""Those that have a value in Python, whatever their digits."""


class PythonValues:
    """Adds rules for the values of one schema to a grammar.

    An object has the properties that the schema names, in their order. Others come only into objects that name none.
    """

    def __init__(self, lark: Lark, shapes: Shapes, owner: str) -> None:
        self._lark, self._shapes, self._owner = lark, shapes, owner
        self._rules: dict[int, str] = {}
        """By identity of the part of the schema, so that a schema may hold itself."""
        self._levels = MOST_NESTING

    def value(self, schema: Any, pointer: str) -> str:
        """The rule for the values that a part of the schema allows."""
        if id(schema) not in self._rules:
            name = self._rules[id(schema)] = self._lark.reserved()
            self._shapes.require_level(self._levels, pointer)
            self._levels -= 1
            choices = [self._shape(shape) for shape in self._shapes.of(schema, pointer)]
            self._levels += 1
            self._lark.rule(" | ".join(choices), self._owner, name=name)
        return self._rules[id(schema)]

    def listed(self, items: Sequence[tuple[str, bool]]) -> str:
        """The expression for items with commas between them.

        Args: items: expressions, and whether each must be there.
        """
        first = rest = '""'
        # From the last to the first: what may follow where nothing came yet, and where something did.
        for expression, is_required in reversed(items):
            after = self._lark.rule(f"{_COMMA} {expression} {rest}{'' if is_required else f' | {rest}'}", self._owner)
            first = self._lark.rule(f"{expression} {rest}{'' if is_required else f' | {first}'}", self._owner)
            rest = after
        return first

    def _shape(self, shape: Shape) -> str:
        if shape.kind == "literal":
            return quoted(python_literal(shape.value))
        if shape.kind == "any":
            return self._anything()
        if shape.kind == "null":
            return '"None"'
        if shape.kind == "boolean":
            return '"True" | "False"'
        if shape.kind == "array":
            return self._array(shape)
        if shape.kind == "object":
            return self._object(shape)
        if not shape.schema:
            return self._string() if shape.kind == "string" else _NUMBERS[shape.kind]
        return self._lark.rule(json_value({"type": shape.kind, **shape.schema}), self._owner)

    def _array(self, shape: Shape) -> str:
        prefix, items = shape.schema.get("prefixItems", []), shape.schema.get("items", True)
        least, most = shape.schema.get("minItems", 0), shape.schema.get("maxItems")
        if isinstance(items, list):
            raise self._shapes.error(shape.pointer, "a list of items by place is no schema", 'use "prefixItems"')
        if prefix or items is False:
            return self._tuple(shape, prefix, least)
        if most is not None and most < max(least, 1):
            if least > most:
                raise self._shapes.error(shape.pointer, '"minItems" is above "maxItems"', "allow a length")
            return '"[]"'
        item = self.value(items, f"{shape.pointer}/items")
        more = f"({_COMMA} {item}){{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        return f'"[" {item} {more} "]"' if least else f'"[" ({item} {more})? "]"'

    def _tuple(self, shape: Shape, prefix: Sequence[Any], least: int) -> str:
        """A list of the items that come by place, and no others."""
        most = min(len(prefix), shape.schema.get("maxItems", len(prefix)))
        if least > most:
            raise self._shapes.error(shape.pointer, "more items are needed than come by place", 'lower "minItems"')
        items = [self.value(part, f"{shape.pointer}/prefixItems/{i}") for i, part in enumerate(prefix[:most])]
        tail = '""'
        for index in reversed(range(most)):
            body = f"{_COMMA if index else ''} {items[index]} {tail}"
            tail = self._lark.rule(body if index < least else f"({body})?", self._owner)
        return f'"[" {tail} "]"'

    def _object(self, shape: Shape) -> str:
        named = properties(shape)
        others = shape.schema.get("additionalProperties", True)
        if named or others is False:
            pairs = [
                (f"{quoted(json.dumps(name, ensure_ascii=False))} {_COLON} {self.value(*part)}", is_required)
                for name, part, is_required in named
            ]
            return f'"{{" {self.listed(pairs)} "}}"'
        pair = f"{self._string()} {_COLON} {self.value(others, f'{shape.pointer}/additionalProperties')}"
        return f'"{{" ({pair} ({_COMMA} {pair})*)? "}}"'

    def _string(self) -> str:
        return self._lark.shared(_STRING)

    def _anything(self) -> str:
        any_name = "anything"
        scalar = f'{self._string()} | {_NUMBERS["number"]} | "True" | "False" | "None"'
        items = f'"[" ({any_name} ({_COMMA} {any_name})*)? "]"'
        pair = f"{self._string()} {_COLON} {any_name}"
        return self._lark.shared(f'{scalar} | {items} | "{{" ({pair} ({_COMMA} {pair})*)? "}}"', name=any_name)


def properties(shape: Shape) -> list[tuple[str, tuple[Any, str], bool]]:
    """The properties that an object names: name, schema with its pointer, whether it must be there."""
    named, required = shape.schema.get("properties", {}), shape.schema.get("required", [])
    found = [
        (name, (part, f"{shape.pointer}/properties/{name.replace('~', '~0').replace('/', '~1')}"), name in required)
        for name, part in named.items()
    ]
    others = shape.schema.get("additionalProperties", True)
    where = f"{shape.pointer}/additionalProperties"
    return found + [(name, (others, where), True) for name in required if name not in named]


def python_literal(value: Any) -> str:
    """A value of JSON as Python writes it."""
    if isinstance(value, list):
        return f"[{', '.join(map(python_literal, value))}]"
    if isinstance(value, Mapping):
        pairs = (f"{python_literal(key)}: {python_literal(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if value is None or isinstance(value, bool):
        return _NAMES[value]
    return json.dumps(value, ensure_ascii=False)
