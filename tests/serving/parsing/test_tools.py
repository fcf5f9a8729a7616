"""The schema of a parameter decides what the text of a model becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from serving.parsing.answers import tool

from sala_export.errors import RequestError
from sala_export.serving.parsing import output_parser
from sala_export.serving.parsing.tools import Tools

REFERENCES = {
    "$defs": {
        "Point": {"properties": {}, "type": "object"},
        "a/b": {"anyOf": [{"$ref": "#/$defs/a~1b"}, {"type": "null"}]},
    },
    "properties": {
        "point": {"$ref": "#/$defs/Point"},
        "loop": {"$ref": "#/$defs/a~1b"},
        "lost": {"$ref": "#/no/where"},
    },
}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ("integer", "5", 5),
        ("integer", " -3\n", -3),
        ("integer", "5.0", 5.0),
        ("integer", "5.5", "5.5"),
        ("integer", "five", "five"),
        ("integer", "true", "true"),
        ("integer", "0x10", 16),
        ("number", "1e2", 100.0),
        ("boolean", "true", True),
        ("boolean", "False", False),
        ("boolean", "yes", "yes"),
        ("array", "[1, 'a']", [1, "a"]),
        ("array", "{}", "{}"),
        ("object", '{"a": [null]}', {"a": [None]}),
        ("object", "{'a': None}", {"a": None}),
        ("object", "{'a': ", "{'a': "),
        ("object", r'{"a": "\x41"}', {"a": "A"}),
        ("null", "None", None),
        ("string", "5", "5"),
        ("string", " null ", " null "),
        ({}, "5", "5"),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": ["string", "null"]}, "null", "null"),
        ({"anyOf": [{"type": "number"}, {"type": "array"}]}, "[2]", [2]),
        ({"enum": [1, 2]}, "2", 2),
        ({"enum": ["1", "2"]}, "2", "2"),
        ({"const": True}, "true", True),
        ({"type": [{"no": "name"}], "anyOf": 3}, "5", "5"),
        (True, "5", "5"),
    ],
)
def test_text_becomes_what_its_schema_names(schema: Any, text: str, value: Any) -> None:
    properties = {"x": {"type": schema} if isinstance(schema, str) else schema}
    tools = Tools([{"type": "function", "function": {"name": "f", "parameters": {"properties": properties}}}])
    found = json.loads(tools.json_of_text("f", "x", text))
    assert found == value
    assert type(found) is type(value)


def test_references_within_a_schema_are_followed() -> None:
    tools = Tools([{"type": "function", "function": {"name": "f", "parameters": REFERENCES}}])
    assert tools.json_of_text("f", "point", "{}") == "{}"
    assert tools.json_of_text("f", "loop", "null") == "null"
    assert tools.json_of_text("f", "lost", "{}") == '"{}"'


def test_parameters_that_no_schema_knows_are_texts() -> None:
    tools = Tools([tool("f", x="integer"), {"type": "function", "function": {"name": "g"}}])
    assert [tools.json_of_text(*names, "5") for names in (("f", "y"), ("g", "x"), ("h", "x"))] == ['"5"'] * 3


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({}, r"tools\[1\]\.function\.name is missing"),
        ({"function": {"name": 3}}, r"tools\[1\]\.function\.name is missing"),
        ({"function": {"name": "g", "parameters": []}}, r"tools\[1\]\.function\.parameters is no schema"),
        (
            {"function": {"name": "g", "parameters": {"properties": []}}},
            r"tools\[1\]\.function\.parameters is no schema",
        ),
    ],
)
def test_tool_that_cannot_be_called_is_named(bad: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        output_parser("hermes", tools=[tool("f"), bad])
