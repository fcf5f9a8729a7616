"""The tools of a request: what their schemas say about arguments that a model writes without types."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import RequestError
from .events import EventLog
from .json_copy import is_json, json_of
from .python_literal import literal_value
from .reader import SPACES

NAME_LIMIT = 256
"""Characters of a name. What is longer is no name."""
NAME_CHARACTERS = re.compile(r"[^\s\"'`()\[\]{},;=<>#\\\x00-\x1f\x7f\ud800-\udfff]+")
_JSON_TYPES = {'"': "string", "{": "object", "[": "array", "t": "boolean", "f": "boolean", "n": "null"}
"""By the first character of a value. Numbers have others."""
_PYTHON_TYPES = {
    str: "string",
    dict: "object",
    list: "array",
    bool: "boolean",
    type(None): "null",
    int: "integer",
    float: "number",
}


def is_name(text: str) -> bool:
    """True if a text may be the name of a function: no white space, quotes or brackets, at most 256 characters."""
    return len(text) <= NAME_LIMIT and NAME_CHARACTERS.fullmatch(text) is not None


class Tools:
    """The functions that a model may call. It is immutable."""

    def __init__(self, tools: Sequence[Mapping[str, Any]]) -> None:
        """Args: tools: in OpenAI's form, `{"type": "function", "function": {"name": ..., "parameters": SCHEMA}}`.

        Raises: RequestError naming the tool that has no name, or whose parameters are no schema of an object.
        """
        self._schemas: dict[str, Mapping[str, Any]] = {}
        self._types: dict[tuple[str, str], frozenset[str]] = {}
        for index, tool in enumerate(tools):
            function = tool.get("function")
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise RequestError(f"tools[{index}].function.name is missing: name the function that can be called")
            schema = function.get("parameters")
            schema = {} if schema is None else schema
            if not isinstance(schema, Mapping) or not isinstance(schema.get("properties", {}), Mapping):
                raise RequestError(f"tools[{index}].function.parameters is no schema: give properties by name")
            self._schemas[function["name"]] = schema

    def __bool__(self) -> bool:
        return bool(self._schemas)

    def properties(self, function: str) -> Mapping[str, Any]:
        """Schemas of a function's parameters, in order, by name. A function that is no tool has none."""
        properties: Mapping[str, Any] = self._schemas.get(function, {}).get("properties", {})
        return properties

    def json_of_text(self, function: str, parameter: str, text: str) -> str:
        """Write the text of a parameter as JSON, by its schema.

        If the schema names types and text is none of them, and the text is JSON or a Python literal of such a type, it
        becomes that value. Else it becomes a JSON text.
        """
        key = (function, parameter)
        if key not in self._types:
            schema = self._schemas.get(function, {})
            self._types[key] = _types(self.properties(function).get(parameter), schema)
        types = self._types[key]
        if types and "string" not in types:
            value = text.strip(SPACES) if is_json(text) else _literal_json(text)
            if value is not None and _fits(value, types):
                return value
        return json_of(text)


class ArgumentWriter:
    """Reports the arguments of the latest call in a log, one after the other. What is there twice is reported twice."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._before = "{"

    def add(self, name: str, value: str) -> None:
        """Report an argument. Args: value: JSON."""
        self._log.arguments(f"{self._before}{json_of(name)}: {value}")
        self._before = ", "

    def close(self) -> None:
        """Say that these were all."""
        self._log.arguments("{}" if self._before == "{" else "}")


def _literal_json(text: str) -> str | None:
    """A chat template in Python writes values as Python does, `True` for example, and models copy that."""
    try:
        return json_of(literal_value(text))
    except ValueError:
        return None


def _fits(value: str, types: frozenset[str]) -> bool:
    """True if JSON is of one of some types."""
    if value[0] in _JSON_TYPES:
        return _JSON_TYPES[value[0]] in types
    return "number" in types or ("integer" in types and float(value).is_integer())


def _types(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """Types that a schema names, also in its alternatives and behind references. Empty: any."""
    types: set[str] = set()
    todo, seen = [schema], set()
    while todo:
        part = todo.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        types.update(_named_types(part))
        for alternatives in ("anyOf", "oneOf", "allOf"):
            todo += _list(part.get(alternatives))
        todo.append(_referred(part.get("$ref"), root))
    return frozenset(types)


def _named_types(schema: Mapping[str, Any]) -> list[str]:
    """Types that a schema names, or those of the values that it allows."""
    named = schema.get("type")
    if named is not None:
        return [name for name in ([named] if isinstance(named, str) else _list(named)) if isinstance(name, str)]
    values = [*_list(schema.get("enum")), *([schema["const"]] if "const" in schema else [])]
    return [name for value in values for kind, name in _PYTHON_TYPES.items() if type(value) is kind]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _referred(reference: Any, root: Mapping[str, Any]) -> Any:
    """The part of a schema that `#/$defs/NAME` refers to. None if there is none."""
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return None
    part: Any = root
    for step in reference[2:].split("/"):
        part = part.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(part, Mapping) else None
    return part
