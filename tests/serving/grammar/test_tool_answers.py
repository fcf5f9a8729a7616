"""Calls of tools drawn at random, read by the parsers of the server, and judged by the schemas of the tools."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from serving.grammar.walks import accepted, allowed_ids, drawn, is_valid, model

from sala_export.errors import RequestError
from sala_export.serving.grammar.tool_grammar import CALL_FORMATS
from sala_export.serving.parsing import ToolArguments, ToolCallBegun, output_parser

_NODE = {
    "type": "object",
    "properties": {
        "v": {"type": "boolean"},
        "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
    },
    "required": ["v"],
}
_PLACES = {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": False, "minItems": 1}
SCHEMAS: tuple[Any, ...] = (
    {
        "type": "object",
        "properties": {
            "x": {"type": "integer"},
            "from": {"type": "string", "maxLength": 4},
            "o": {"type": "object", "properties": {"k": {"type": ["boolean", "null"]}, "z": {}}, "required": ["k"]},
            "l": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 2},
        },
        "required": ["o"],
    },
    {
        "type": "object",
        "properties": {
            "e": {"enum": ["a<b", 'x&"y', "é"]},
            "p": {"type": "string", "pattern": "^[a-z<&]+x?$", "minLength": 2},
            "n": {"type": "number", "minimum": 0, "maximum": 9.5},
            "u": {"anyOf": [{"type": "integer"}, {"type": "null"}, {"enum": [True]}]},
        },
        "required": ["e", "p"],
    },
    {
        "$defs": {"node": _NODE},
        "type": "object",
        "properties": {
            "tree": {"$ref": "#/$defs/node"},
            "places": _PLACES,
            "map": {"type": "object", "additionalProperties": {"type": "number"}},
        },
        "required": ["tree"],
    },
    {"type": "object", "properties": {}},
)
TOOLS = [
    {"type": "function", "function": {"name": f"tool-{i}", "parameters": schema}} for i, schema in enumerate(SCHEMAS)
]
MARKERS = ("<tool_call>", "</tool_call>", "<|tool_call_start|>", "<|tool_call_end|>", "<function", "</think>")
ONE_CALL = {
    "hermes": '<tool_call>\n{"name": "tool-0", "arguments": {"o": {"k": null}}}\n</tool_call>',
    "minicpm4": '<|tool_call_start|>\n```python\ntool-0(o={"k": None})\n```\n<|tool_call_end|>',
    "minicpm5": '<function name="tool-0">\n<param name="o">{"k": null}</param>\n</function>',
}


def _calls(form: str, text: str) -> list[tuple[str, Any]]:
    """Names and arguments, in a text that is nothing but calls."""
    parser = output_parser(form, tools=TOOLS)
    names, arguments = [], []
    for event in [*parser.push(text), *parser.finish()]:
        assert isinstance(event, ToolCallBegun | ToolArguments), text
        if isinstance(event, ToolCallBegun):
            names.append(event.name)
            arguments.append("")
        else:
            arguments[event.index] += event.text
    return list(zip(names, map(json.loads, arguments), strict=True))


@pytest.mark.parametrize("form", CALL_FORMATS)
@pytest.mark.parametrize(("kind", "markers"), [("sentencepiece", ()), ("byte_level", MARKERS)])
def test_calls_are_read_back_as_the_schemas_allow(form: str, kind: str, markers: tuple[str, ...]) -> None:
    of, generator, seen = model(kind, markers), random.Random(3), set()
    for turn in range(8):
        choice, parallel = (None if turn % 2 else f"tool-{turn // 2 % 4}"), bool(turn % 3)
        constraint = of.grammars.tool_calls(form, TOOLS, choice=choice, parallel=parallel, reasoning=False)
        for ids in drawn(constraint, of, generator):
            calls = _calls(form, of.text(ids))
            assert len(calls) >= 1 if parallel else len(calls) == 1
            for name, arguments in calls:
                assert choice in (None, name)
                assert is_valid(arguments, SCHEMAS[int(name[-1])]), of.text(ids)
                seen.add(name)
    assert seen == {f"tool-{i}" for i in range(4)}


@pytest.mark.parametrize("form", CALL_FORMATS)
@pytest.mark.parametrize("markers", [(), MARKERS])
def test_call_as_models_write_it_is_allowed(form: str, markers: tuple[str, ...]) -> None:
    of = model("byte_level", markers)
    call = of.spelled(ONE_CALL[form])
    constraint = of.grammars.tool_calls(form, TOOLS, choice=None, parallel=False)
    assert accepted(constraint, call) == len(call)
    assert allowed_ids(constraint) == sorted(of.stops)
    named = of.grammars.tool_calls(form, TOOLS, choice="tool-1", parallel=True)
    assert accepted(named, call) == accepted(named, []) + len(of.spelled(ONE_CALL[form].partition("0")[0]))


@pytest.mark.parametrize("form", CALL_FORMATS)
def test_thinking_may_come_before_a_call_and_text_may_not(form: str) -> None:
    of = model("byte_level", MARKERS)
    answer = of.spelled("<think>which?</think>\n" + ONE_CALL[form])
    for reasoning, taken in ((True, len(answer)), (False, 0)):
        constraint = of.grammars.tool_calls(form, TOOLS, choice=None, parallel=True, reasoning=reasoning)
        assert accepted(constraint, answer) == taken
    constraint = of.grammars.tool_calls(form, TOOLS, choice=None, parallel=True)
    assert accepted(constraint, of.spelled("Let me")) == 0


def test_python_call_is_written_with_the_names_of_python() -> None:
    of = model("sentencepiece")
    begin = of.spelled('<|tool_call_start|>\n```python\ntool-0(from_="a", o={"k": ')
    for name, is_allowed in (("True", True), ("None", True), ("true", False), ("null", False)):
        constraint = of.grammars.tool_calls("minicpm4", TOOLS, choice=None, parallel=False)
        assert accepted(constraint, begin) == len(begin)
        assert (accepted(constraint, of.spelled(name)) == len(name)) == is_allowed


def test_text_of_xml_may_stand_in_cdata_and_has_entities() -> None:
    of = model("sentencepiece")
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}
    for value, is_allowed in (("a &lt;b&amp;", True), ("<![CDATA[a < b]]>", True), ("a < b", False), ("a & b", False)):
        text = of.spelled(f'<function name="f"><param name="x">{value}</param></function>')
        constraint = of.grammars.tool_calls("minicpm5", [tool], choice=None, parallel=False)
        assert (accepted(constraint, text) == len(text)) == is_allowed


def _with(schema: Any, name: str = "f") -> Sequence[dict[str, Any]]:
    parameters = {"type": "object", "properties": {"x": schema}}
    return [{"type": "function", "function": {"name": name, "parameters": parameters}}]


@pytest.mark.parametrize(
    ("form", "tools", "message"),
    [
        ("none", TOOLS, "no form for tool calls"),
        ("xml", TOOLS, "'xml' is no format of tool calls: use one of minicpm4"),
        ("hermes", [], "a tool has to be called, and tools has none"),
        ("hermes", [*TOOLS, TOOLS[0]], "tool-0.* is there twice"),
        ("hermes", [{"type": "web_search"}], r"tools\[0\] is no function"),
        ("hermes", _with({}, name="a b"), r"tools\[0\].function.name is no name"),
        ("hermes", _with({"uniqueItems": True}), 'tool "f" at #/properties/x: "uniqueItems" is not supported'),
        ("hermes", _with({"type": "string", "pattern": "("}), 'tool "f" cannot be followed .regex parse error'),
        ("minicpm4", _with({"uniqueItems": True}), '"f", schema at #/properties/x: "uniqueItems" is not supported'),
        ("minicpm4", _with({"$ref": "#/$defs/y"}), "'#/\\$defs/y' refers to nothing in the schema"),
        ("minicpm4", _with({"$ref": "#/properties/x"}), "at #/properties/x: no value is allowed"),
        ("minicpm4", _with({"$ref": "#", "minLength": 1}), '"\\$ref" beside "minLength" is not supported'),
        ("minicpm4", _with({"type": "array", "minItems": "2"}), '"minItems" is "2": write a whole number'),
        ("minicpm4", _with({"type": "array", "minItems": 3, "maxItems": 1}), '"minItems" is above "maxItems"'),
        ("minicpm5", _with({"type": "string", "format": "uri"}), 'format "uri" is not supported in this format'),
        ("minicpm5", _with({"type": "text"}), '"text" is no type'),
    ],
)
def test_what_is_not_supported_is_named(form: str, tools: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model("byte_level").grammars.tool_calls(form, tools, choice=None, parallel=True)


@pytest.mark.parametrize(("form", "name"), [("minicpm4", "a b"), ("minicpm5", "a\nb"), ("minicpm5", "")])
def test_parameter_that_a_format_cannot_name_is_refused(form: str, name: str) -> None:
    tool = {"function": {"name": "f", "parameters": {"type": "object", "properties": {name: {}}}}}
    with pytest.raises(RequestError, match=r'tool "f", parameter .* is no name in'):
        model("byte_level").grammars.tool_calls(form, [tool], choice=None, parallel=True)


def test_tool_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match="tool_choice names 'f', and tools has tool-0, tool-1"):
        model("byte_level").grammars.tool_calls("hermes", TOOLS, choice="f", parallel=True)
