"""Answers of a form: JSON, schemas and calls of tools that are forced, with a model that writes at random."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from pydantic import BaseModel
from support.server import MODEL, RunningServer, client_of, running_server
from support.tool_bundles import hermes_bundle

ASKED = [{"role": "user", "content": "Where?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "How the weather is",
            "parameters": {
                "type": "object",
                "properties": {"days": {"enum": [1, 3, 7]}, "units": {"enum": ["C", "F"]}},
                "required": ["days", "units"],
                "additionalProperties": False,
            },
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]


class Place(BaseModel):
    """What an answer is parsed as."""

    kind: bool
    levels: list[bool]


SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"type": "boolean"},
        "levels": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["kind", "levels"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(hermes_bundle()) as running:
        yield running


@pytest.mark.parametrize("seed", range(4))
def test_answer_fits_its_schema(server: RunningServer, seed: int) -> None:
    answer = client_of(server).chat.completions.create(
        model=MODEL,
        messages=ASKED,
        seed=seed,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}},
        reasoning_effort="none",
    )
    assert answer.choices[0].finish_reason == "stop"
    place = Place.model_validate_json(answer.choices[0].message.content, strict=True)
    assert 1 <= len(place.levels) <= 3


def test_choices_fit_their_schema_each(server: RunningServer) -> None:
    answer = client_of(server).chat.completions.create(
        model=MODEL,
        messages=ASKED,
        n=3,
        seed=0,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
        reasoning_effort="none",
    )
    contents = [choice.message.content for choice in answer.choices]
    assert all(Place.model_validate_json(content) for content in contents)
    assert len(set(contents)) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_tool_that_must_be_called_is_called(server: RunningServer, stream: bool) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    request = {"model": MODEL, "messages": ASKED, "tools": TOOLS, "tool_choice": choice, "max_tokens": 500}
    request |= {"reasoning_effort": "none", "parallel_tool_calls": False}
    completions = client_of(server).chat.completions
    if stream:
        with completions.stream(**request) as events:
            answer = events.until_done().get_final_completion()
    else:
        answer = completions.create(**request)
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, answer.choices[0].finish_reason) == ("weather", "tool_calls")
    arguments = json.loads(call.function.arguments)
    assert arguments["days"] in (1, 3, 7)
    assert arguments["units"] in ("C", "F")


def test_results_of_tools_are_taken_back(server: RunningServer) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages = [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon <|im_end|>"},
    ]
    answer = client_of(server).chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, max_tokens=3)
    assert answer.usage.completion_tokens <= 3


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "none"}}, "tools": TOOLS}, "tools has weather, now"),
        ({"tool_choice": "required"}, "tools has none"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "has no schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strnig"}}}},
            "strnig",
        ),
    ],
)
def test_form_that_cannot_be_kept_is_refused(server: RunningServer, fields: dict[str, object], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client_of(server).chat.completions.create(model=MODEL, messages=ASKED, **fields)
    assert words in caught.value.body["message"]
