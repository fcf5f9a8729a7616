"""Schemas that cost too much end with an error, and a grammar is tried once."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from serving.grammar.walks import model

from sala_export.errors import RequestError, RunError
from sala_export.serving.grammar.lark import HEADER
from sala_export.serving.grammar.limits import MOST_NESTING, Trials


def _nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def _chain(links: int, *, through_properties: bool) -> dict[str, Any]:
    """References that lead from one to the next, directly or through an object each."""
    parts: dict[str, Any] = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(links)}
    if through_properties:
        parts = {name: {"type": "object", "properties": {"x": part}} for name, part in parts.items()}
    parts[f"a{links}"] = {"type": "string"}
    return {"$defs": parts, "type": "object", "properties": {"x": {"$ref": "#/$defs/a0"}}}


def _pattern(text: str) -> dict[str, Any]:
    return {"type": "string", "pattern": text}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (_nested(MOST_NESTING), "nested deeper than 100 levels"),
        (_nested(100_000), "nested deeper than 100 levels"),
        ({"enum": [f"value {i}" for i in range(6000)]}, "has .* bytes as JSON, at most 65536 are taken"),
        ({"const": float("inf")}, "is no JSON"),
        ({"const": "\ud800"}, "is no JSON .*surrogates not allowed"),
        ({"type": "integer", "multipleOf": 99_999_989}, "more than the time or memory that is allowed"),
        ({"allOf": [_pattern(f"(.*{c}.*){{5}}") for c in "abcdefghijklmnopqrst"]}, "more than the time or memory"),
        (_chain(800, through_properties=True), "more than the time or memory"),
        ({"allOf": [{"anyOf": [{"properties": {c + d: {}}} for c in "abcdefgh"]} for d in "abcdefgh"]}, "too large"),
        (_pattern("(" * 300 + "a" + ")" * 300), "regex parse error"),
        (_pattern("a(?=b)"), "look-ahead"),
        ({"$ref": "file:///etc/passwd"}, "does not fetch resources"),
        (
            {"type": "object", "properties": {"a": {"not": {}}}},
            'the JSON schema at #/properties/a: "not" is not supported',
        ),
        ({"x-guidance": {"lenient": True}, "uniqueItems": True}, '"uniqueItems" is not supported'),
        ({"type": "number", "minimum": 2, "maximum": 1}, "Unsatisfiable schema"),
    ],
)
def test_schema_that_cannot_be_followed_is_refused(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model("byte_level").grammars.json_schema(schema)


@pytest.mark.parametrize(("form", "through_properties"), [("minicpm4", True), ("minicpm4", False), ("minicpm5", False)])
def test_references_that_nest_too_deeply_are_refused(form: str, through_properties: bool) -> None:
    tool = {"function": {"name": "f", "parameters": _chain(1500, through_properties=through_properties)}}
    with pytest.raises(RequestError, match=r'tool "f", schema at .*: references lead more than 100 levels deep'):
        model("byte_level").grammars.tool_calls(form, [tool], choice=None, parallel=True)


@pytest.mark.parametrize(
    "schema",
    [
        _nested(MOST_NESTING - 2),
        _chain(100, through_properties=True),
        {"enum": [f"value {i}" for i in range(4000)]},
        _pattern("^(([a-z0-9]{1,100}){1,100}){1,100}$"),
        {"type": "string", "minLength": 100_000_000},
        {"type": "array", "items": {"anyOf": [{"$ref": "#"}] * 300}, "maxItems": 1_000_000_000},
    ],
)
def test_large_schema_within_the_limits_is_taken(schema: dict[str, Any]) -> None:
    assert model("byte_level").grammars.json_schema(schema).allowed().any()


def test_grammar_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    trials, runs = Trials(1000), []
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: runs.append(args) or run(*args, **options))
    for _ in range(2):
        assert trials.message(f'{HEADER}\nstart: "a"') == ""
        assert "unknown name" in (trials.message(f"{HEADER}\nstart: B") or "")
    assert len(runs) == 2


def test_process_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(RunError, match="cannot start"):
        Trials(1000).message('start: "a"')
