"""What a JSON schema allows, kind by kind, for formats that write values in another way than JSON does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from ...errors import RequestError
from .limits import MOST_NESTING

Schema = Mapping[str, Any]

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_CHOICES = ("$ref", "anyOf", "oneOf", "allOf")
_ASSERTIONS = (
    *("type", "enum", "const", "not", "if", "then", "else", "format", "pattern", "minLength", "maxLength"),
    *("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("items", "prefixItems", "additionalItems", "unevaluatedItems", "minItems", "maxItems", "uniqueItems"),
    *("contains", "minContains", "maxContains"),
    *("properties", "required", "additionalProperties", "patternProperties", "unevaluatedProperties"),
    *("propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies"),
    *("$dynamicRef", "$recursiveRef"),
)
"""Keywords that say which values are allowed. All others describe."""
_BY_TYPE = {
    "string": ("format", "pattern", "minLength", "maxLength"),
    "integer": ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "number": ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "object": ("properties", "required", "additionalProperties"),
}
_LENGTHS = ("minLength", "maxLength", "minItems", "maxItems")
_VALUES: tuple[tuple[tuple[str, ...], type, str], ...] = (
    (_LENGTHS, int, "a whole number"),
    (("pattern", "format"), str, "a text"),
    (("required", "prefixItems"), list, "a list"),
    (("properties",), Mapping, "an object"),
)
"""What the values of some keywords are. The library looks at those of the others."""
_PYTHON_TYPES = {"null": type(None), "boolean": bool, "string": str, "array": list, "object": dict}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """One kind of value."""

    kind: str
    """One of `TYPES`, or "any", or "literal"."""
    schema: Schema
    """Keywords that are about this type."""
    pointer: str
    """Where in the whole schema it stands, as a JSON pointer behind `#`."""
    value: Any = None
    """Value of a literal."""


class Shapes:
    """Reads the parts of one schema."""

    def __init__(self, root: Schema, owner: str) -> None:
        """Args: owner: names the schema in errors."""
        self.root = root
        self._owner = owner

    def of(self, schema: Any, pointer: str) -> list[Shape]:
        """The kinds of values that a part of the schema allows, at least one.

        Raises: RequestError naming a keyword that cannot be followed, or if no value is allowed.
        """
        found = list(self._of(schema, pointer, set(), MOST_NESTING))
        if not found:
            raise self.error(pointer, "no value is allowed", "allow one")
        return found

    def error(self, pointer: str, what: str, advice: str) -> RequestError:
        return RequestError(f"{self._owner}, schema at {pointer}: {what}: {advice}")

    def require_level(self, levels: int, pointer: str) -> None:
        """Raises: RequestError if no level is left: references nest what is not nested in the schema."""
        if levels <= 0:
            raise self.error(pointer, f"references lead more than {MOST_NESTING} levels deep", "make it flatter")

    def _of(self, schema: Any, pointer: str, seen: set[str], levels: int) -> Iterator[Shape]:
        self.require_level(levels, pointer)
        if schema is False:
            return
        if schema is True:
            schema = {}
        if not isinstance(schema, Mapping):
            raise self.error(pointer, "it is no schema", "write an object, true or false")
        asserted = [keyword for keyword in (*_CHOICES, *_ASSERTIONS) if keyword in schema]
        choices = [keyword for keyword in asserted if keyword in _CHOICES]
        if choices:
            self._require_alone(asserted, pointer)
            yield from self._choices(schema, choices[0], pointer, seen, levels - 1)
        elif "const" in schema or "enum" in schema:
            yield from self._literals(schema, asserted, pointer)
        elif asserted:
            yield from self._typed(schema, asserted, pointer)
        else:
            yield Shape(kind="any", schema={}, pointer=pointer)

    def _require_alone(self, asserted: Sequence[str], pointer: str) -> None:
        if len(asserted) > 1:
            what = f'"{asserted[0]}" beside "{asserted[1]}" is not supported in this format'
            raise self.error(pointer, what, "merge them into one")

    def _choices(self, schema: Schema, keyword: str, pointer: str, seen: set[str], levels: int) -> Iterator[Shape]:
        value = schema[keyword]
        if keyword == "$ref" and isinstance(value, str):
            # What was seen already adds nothing to a choice, and a circle of references only itself.
            if value not in seen:
                seen.add(value)
                yield from self._of(self._resolved(value, pointer), value, seen, levels)
            return
        if not isinstance(value, list) or keyword == "$ref":
            raise self.error(pointer, f'"{keyword}" has another type', "list schemas, and refer by a text")
        if keyword != "anyOf" and len(value) != 1:
            raise self.error(pointer, f'"{keyword}" of several is not supported in this format', 'use "anyOf"')
        for index, part in enumerate(value):
            yield from self._of(part, f"{pointer}/{keyword}/{index}", seen, levels)

    def _resolved(self, reference: str, pointer: str) -> Any:
        missing = self.error(pointer, f"{reference!r} refers to nothing in the schema", "refer to a part of it")
        if not reference.startswith("#"):
            raise missing
        found: Any = self.root
        for name in unquote(reference[1:]).split("/")[1:]:
            key = name.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, Mapping) and key in found:
                found = found[key]
            else:
                raise missing
        return found

    def _literals(self, schema: Schema, asserted: Sequence[str], pointer: str) -> Iterator[Shape]:
        self._require_alone([keyword for keyword in asserted if keyword != "type"], pointer)
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list):
            raise self.error(pointer, '"enum" is no list', "list values")
        types = self._types(schema, pointer) if "type" in schema else TYPES
        for value in values:
            if any(_is_of_type(value, name) for name in types):
                yield Shape(kind="literal", schema=schema, pointer=pointer, value=value)

    def _typed(self, schema: Schema, asserted: Sequence[str], pointer: str) -> Iterator[Shape]:
        types = self._types(schema, pointer) if "type" in schema else _types_of(asserted)
        for keyword in asserted:
            self._require_typed(keyword, schema[keyword], pointer)
        for name in types:
            keywords = _BY_TYPE.get(name, ())
            yield Shape(kind=name, schema={key: schema[key] for key in keywords if key in schema}, pointer=pointer)
        known = {"type", *(keyword for keywords in _BY_TYPE.values() for keyword in keywords)}
        for keyword in asserted:
            if keyword not in known:
                raise self.error(pointer, f'"{keyword}" is not supported in this format', "leave it out")

    def _require_typed(self, keyword: str, value: Any, pointer: str) -> None:
        for keywords, expected, name in _VALUES:
            # A bool is an int to Python.
            if keyword in keywords and (not isinstance(value, expected) or isinstance(value, bool)):
                raise self.error(pointer, f'"{keyword}" is {json.dumps(value)[:40]}', f"write {name}")
        if keyword in _LENGTHS and value < 0:
            raise self.error(pointer, f'"{keyword}" is below 0', "write how many there are")
        if keyword == "required" and not all(isinstance(name, str) for name in value):
            raise self.error(pointer, '"required" lists more than texts', "list names")

    def _types(self, schema: Schema, pointer: str) -> Sequence[str]:
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        for name in types:
            if name not in TYPES:
                raise self.error(pointer, f"{json.dumps(name)} is no type", f"use one of {', '.join(TYPES)}")
        return types


def _types_of(asserted: Sequence[str]) -> list[str]:
    """Without a type, keywords of one leave values of all others free: here they mean that type."""
    return [name for name in TYPES if name != "integer" and any(key in _BY_TYPE.get(name, ()) for key in asserted)]


def _is_of_type(value: Any, name: str) -> bool:
    # A bool is an int to Python.
    if name in ("integer", "number"):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and (name == "number" or value == int(value))
    return isinstance(value, _PYTHON_TYPES[name])


def rooted(part: Schema, root: Schema) -> Schema:
    """A part of a schema as a schema of its own, whose references find what they did in the whole one."""
    if '"$ref"' not in json.dumps(part):
        return part
    return {**_moved(part), "$defs": {"root": _moved(root)}}


def _moved(part: Any) -> Any:
    if isinstance(part, list):
        return [_moved(item) for item in part]
    if not isinstance(part, Mapping):
        return part
    return {key: _moved_value(key, value) for key, value in part.items()}


def _moved_value(key: str, value: Any) -> Any:
    if key == "$ref" and isinstance(value, str) and value.startswith("#"):
        return f"#/$defs/root{value[1:]}"
    # The values of an enumeration may look like references.
    return value if key == "enum" and isinstance(value, list) else _moved(value)
