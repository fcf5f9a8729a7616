"""Answers drawn at random under JSON schemas, judged by json and by a check of our own."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from serving.grammar.walks import FOREIGN_TOKENS, Model, accepted, allowed_ids, drawn, is_valid, model

from sala_export.errors import RequestError

KINDS = ("sentencepiece", "byte_level")
_NODE = {
    "type": "object",
    "properties": {
        "v": {"type": "integer", "minimum": -5, "maximum": 120},
        "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
    },
    "required": ["v"],
    "additionalProperties": False,
}
_TAGGED = [
    {
        "type": "object",
        "properties": {"kind": {"enum": ["a"]}, "v": {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5}},
        "required": ["kind", "v"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"kind": {"enum": ["b"]}, "w": {"type": ["boolean", "null"]}},
        "required": ["kind", "w"],
        "additionalProperties": False,
    },
]
_ODD_NAMES = {
    "type": "object",
    "properties": {
        "当": {"enum": ["x", "é\n", 'a"b', 3, None, True, {"k": [1, False]}]},
        'q"': {"type": "string", "pattern": "^[A-Z]{2,4}-[0-9]+$"},
        "a b": {"type": "string", "minLength": 2, "maxLength": 5},
    },
    "required": ["当", 'q"', "a b"],
    "additionalProperties": False,
}
SCHEMAS: tuple[Any, ...] = (
    {"$defs": {"node": _NODE}, "$ref": "#/$defs/node"},
    {"anyOf": _TAGGED},
    _ODD_NAMES,
    {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "boolean"}, "minItems": 1}},
    {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False, "minItems": 2},
)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_json_that_the_schema_allows(kind: str) -> None:
    of, generator, ended = model(kind), random.Random(1), 0
    for schema in SCHEMAS:
        for _ in range(6):
            for ids in drawn(of.grammars.json_schema(schema), of, generator):
                ended += 1
                text = of.text(ids)
                assert is_valid(json.loads(text), schema), text
    assert ended > 4 * len(SCHEMAS)


def test_the_check_refuses_what_is_wrong() -> None:
    wrong: tuple[Any, ...] = (
        {"v": 121},
        {"kind": "a", "v": 3.5},
        {"当": "x", 'q"': "A-1", "a b": "xx"},
        {"k": []},
        ["a", "b"],
    )
    for schema, value in zip(SCHEMAS, wrong, strict=True):
        assert not is_valid(value, schema)


@pytest.mark.parametrize("kind", KINDS)
def test_answer_may_end_exactly_where_it_is_complete(kind: str) -> None:
    of = model(kind)
    schema = {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 2}
    constraint = of.grammars.json_schema(schema)
    text = '[ "é]", 12]'
    for count, token_id in enumerate(of.spelled(text)):
        allowed = set(allowed_ids(constraint))
        assert not allowed & set(of.stops), count
        assert token_id in allowed, count
        constraint.take(token_id)
    assert allowed_ids(constraint) == sorted(of.stops)
    constraint.take(of.stops[1])


def test_stop_token_and_more_text_may_follow_a_number() -> None:
    of = model("byte_level")
    constraint = of.grammars.json_schema({"type": "integer"})
    assert accepted(constraint, of.spelled("12")) == 2
    allowed = set(allowed_ids(constraint))
    assert set(of.stops) | set(of.spelled("3")) <= allowed
    assert not allowed & set(of.spelled(".x "))


@pytest.mark.parametrize("kind", KINDS)
def test_no_mask_allows_a_marker_or_what_is_no_token(kind: str) -> None:
    of = model(kind, ("<tool_call>",))
    never = {i for i, value in enumerate(of.vocabulary.tokens) if not value} | set(of.vocabulary.special_token_ids)
    assert len(never) > FOREIGN_TOKENS
    generator, seen = random.Random(2), set()
    for _ in range(3):
        constraint = of.grammars.json_object()
        assert constraint.allowed().shape == (-(-len(of.vocabulary.tokens) // 32),)
        for _ in range(200):
            allowed = allowed_ids(constraint)
            seen |= set(allowed)
            constraint.take(generator.choice(allowed))
            if set(allowed) & set(of.stops):
                break
    assert not seen & never - set(of.stops)
    # All tokens that are text, but for control characters, which JSON escapes in texts.
    assert len(seen) > 0.9 * (of.known - 32)


def test_marker_in_a_text_is_spelled_by_other_tokens() -> None:
    of = model("sentencepiece", ("<tool_call>",))
    constraint = of.grammars.json_object()
    marker = of.vocabulary.markers["<tool_call>"]
    start = of.spelled('{"')
    assert accepted(constraint, start) == len(start)
    assert marker not in allowed_ids(constraint)
    rest = [*of.spelled("<"), *of.spelled("tool_call>"), *of.spelled('": 1}')]
    assert accepted(constraint, rest) == len(rest)
    assert json.loads(of.text(start + rest)) == {"<tool_call>": 1}


def test_white_space_between_parts_is_bounded() -> None:
    of = model("byte_level")
    ids = of.spelled("{" + "\n" + " " * 100)
    assert accepted(of.grammars.json_object(), ids) == 2 + 64


@pytest.mark.parametrize("markers", [(), ("<think>", "</think>"), ("</think>",)])
def test_thinking_may_come_first(markers: tuple[str, ...]) -> None:
    of = model("byte_level", markers)
    thought = of.spelled('<think>a {"b": </thin> 1</think>\n\n{"b":2}')
    assert accepted(of.grammars.json_object(after_reasoning="hermes"), thought) == len(thought)
    assert accepted(of.grammars.json_object(after_reasoning="hermes"), of.spelled('{"b":2}')) == 7
    assert accepted(of.grammars.json_object(), thought) == 0
    constraint = of.grammars.json_object(after_reasoning="hermes", starts_in_reasoning=True)
    begun = thought[len(of.spelled("<think>")) :]
    assert accepted(constraint, begun) == len(begun)
    assert allowed_ids(constraint) == sorted(of.stops)


def test_thinking_that_the_prompt_has_opened_has_to_end() -> None:
    of = model("byte_level")
    constraint = of.grammars.json_object(after_reasoning="hermes", starts_in_reasoning=True)
    answer = of.spelled('{"b":2}')
    assert accepted(constraint, answer) == len(answer)
    assert not set(allowed_ids(constraint)) & set(of.stops)


def test_token_that_is_not_allowed_is_an_error() -> None:
    of = model("byte_level")
    constraint = of.grammars.json_object()
    with pytest.raises(RequestError, match=r"token \d+ cannot be taken by the grammar"):
        constraint.take(of.spelled("x")[0])
    with pytest.raises(RequestError, match="no token can be chosen"):
        constraint.allowed()


def test_grammar_that_grows_too_far_in_use_is_an_error() -> None:
    of: Model = model("byte_level")
    constraint = of.grammars.json_schema({"type": "object", "properties": {f"p{i}": {} for i in range(2000)}})
    with pytest.raises(RequestError, match=r"items.*ask for a simpler form"):
        accepted(constraint, of.spelled("{"))
