"""OpenAI's Responses, through the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from support.scripted_answers import CACHED_TOKENS, Script, in_pieces, scripted
from support.server import MODEL, RunningServer, client_of, running_server
from support.tool_bundles import hermes_bundle

from sala_export.errors import RunError
from sala_export.serving.openai.responses import ResponsesRequest
from sala_export.serving.openai.responses_items import template_messages

ARGUMENTS = {"city": "Köln", "snow": True}
ARGUMENTS_TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)
ANSWER = (
    "<think>\nIt may snow.\n</think>\n\nI will look.\n"
    f'<tool_call>\n{{"name": "weather", "arguments": {ARGUMENTS_TEXT}}}\n</tool_call>'
)
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"enum": ["Köln", "Oslo"]}, "snow": {"type": "boolean"}},
    "required": ["city", "snow"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "weather", "parameters": PARAMETERS, "strict": True}
REQUEST: dict[str, Any] = {"model": MODEL, "input": "Hello"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(hermes_bundle()) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    with client_of(server) as made:
        yield made


def text_part(text: str, kind: str = "input_text") -> dict[str, str]:
    return {"type": kind, "text": text}


def without_ids(items: list[Any]) -> list[dict[str, Any]]:
    described = [item.model_dump(exclude_none=True, warnings="error") for item in items]
    prefixes = {"reasoning": "rs_", "message": "msg_", "function_call": "fc_"}
    for item in described:
        assert item.pop("id").startswith(prefixes[item["type"]])
        assert item.pop("call_id", "call_").startswith("call_")
        item.pop("parsed_arguments", None)
    return described


def test_response_has_what_was_thought_said_and_called(server: RunningServer, client: openai.OpenAI) -> None:
    script = Script(pieces=in_pieces(ANSWER))
    with scripted(server.service, script):
        response = client.responses.create(**REQUEST, tools=[WEATHER], metadata={"a": "b"}, instructions="Be brief.")
    Response.model_validate(response.model_dump(warnings="error"), strict=True)
    part = {"type": "output_text", "text": "I will look.", "annotations": [], "logprobs": []}
    assert without_ids(response.output) == [
        {
            "type": "reasoning",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "It may snow."}],
            "status": "completed",
        },
        {"type": "message", "role": "assistant", "content": [part], "status": "completed"},
        {"type": "function_call", "name": "weather", "arguments": ARGUMENTS_TEXT, "status": "completed"},
    ]
    assert (response.status, response.output_text, response.incomplete_details) == ("completed", "I will look.", None)
    assert (response.metadata, response.instructions, response.tool_choice) == ({"a": "b"}, "Be brief.", "auto")
    usage = response.usage
    assert usage is not None
    assert usage.input_tokens == len(script.requests[0].ids)
    assert usage.input_tokens_details.cached_tokens == CACHED_TOKENS
    assert usage.total_tokens == usage.input_tokens + len(script.pieces)
    thought = server.service.tokenizer.encode("It may snow.", add_special_tokens=False)
    assert usage.output_tokens_details.reasoning_tokens == len(thought)


def test_stream_tells_items_and_their_parts_in_order(server: RunningServer, client: openai.OpenAI) -> None:
    asked = {**REQUEST, "tools": [WEATHER]}
    with scripted(server.service, Script(pieces=in_pieces(ANSWER))):
        raw = list(client.responses.create(**asked, stream=True))
        with client.responses.stream(**asked) as stream:
            snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
            final = stream.get_final_response()
    every_event = pydantic.TypeAdapter[Any](ResponseStreamEvent)
    for event in raw:
        every_event.validate_python(event.model_dump(warnings="error"), strict=True)
    assert [event.sequence_number for event in raw] == [*range(len(raw))]
    types = [event.type.removeprefix("response.") for event in raw]
    once = [name for place, name in enumerate(types) if name != types[place - 1] or not name.endswith(".delta")]
    assert once == [
        "created",
        "in_progress",
        *("output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "content_part.added", "output_text.delta", "output_text.done"),
        *("content_part.done", "output_item.done"),
        *("output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"),
        "completed",
    ]
    assert snapshots[-1] == "I will look."
    assert len(snapshots) > 1
    assert final.output[-1].parsed_arguments == ARGUMENTS
    items = [event.item for event in raw if event.type == "response.output_item.done"]
    assert without_ids(items) == without_ids(raw[-1].response.output)


def test_answer_that_was_cut_off_is_incomplete(server: RunningServer, client: openai.OpenAI) -> None:
    script = Script(pieces=in_pieces("<think>Hm.</think>It is"), reason="length")
    with scripted(server.service, script):
        whole = client.responses.create(**REQUEST, max_output_tokens=9)
        last = list(client.responses.create(**REQUEST, max_output_tokens=9, stream=True))[-1]
    assert script.requests[0].options[0]["max_new_tokens"] == 9
    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert [item.status for item in response.output] == ["completed", "incomplete"]


def test_error_within_a_stream_fails_the_response(server: RunningServer, client: openai.OpenAI) -> None:
    with scripted(server.service, Script(pieces=["Well"], error=RunError("the step failed"))):
        *_, before, last = client.responses.create(**REQUEST, stream=True)
    assert last.type == "response.failed"
    assert last.sequence_number == before.sequence_number + 1
    assert (last.response.status, last.response.error.code) == ("failed", "server_error")
    assert last.response.error.message == "the step failed"
    assert last.response.output[0].status == "incomplete"


def test_items_of_a_turn_are_one_message_of_a_chat_template() -> None:
    call = {"type": "function_call", "name": "weather", "arguments": ARGUMENTS_TEXT, "status": "completed"}
    items = [
        {"role": "user", "content": [text_part("And "), text_part("now?")]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [text_part("Hm.", "reasoning_text")]},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [text_part("Wait.", "output_text")]},
        {**call, "id": None, "call_id": "call_1"},
        {**call, "call_id": "call_2"},
        {"type": "function_call_output", "call_id": "call_1", "output": "Snow"},
        {"type": "function_call_output", "call_id": "call_2", "output": [text_part("Ice")]},
        {"role": "assistant", "content": "It is cold."},
        {"role": "assistant", "content": "Very."},
        {"role": "developer", "content": "Stop."},
    ]
    request = ResponsesRequest.model_validate({**REQUEST, "instructions": "Be brief.", "input": items})
    function = {"name": "weather", "arguments": ARGUMENTS}
    calls = [{"id": call_id, "type": "function", "function": function} for call_id in ("call_1", "call_2")]
    assert template_messages(request.instructions, request.input) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And now?"},
        {"role": "assistant", "content": "Wait.", "reasoning_content": "Hm.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_1", "content": "Snow"},
        {"role": "tool", "tool_call_id": "call_2", "content": "Ice"},
        {"role": "assistant", "content": "It is cold."},
        {"role": "assistant", "content": "Very."},
        {"role": "system", "content": "Stop."},
    ]


def test_output_can_be_sent_back(server: RunningServer, client: openai.OpenAI) -> None:
    script = Script(pieces=in_pieces(ANSWER))
    with scripted(server.service, script):
        first = client.responses.create(**REQUEST, tools=[WEATHER])
        call = first.output[-1]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "Snow"}
        history: list[Any] = [{"role": "user", "content": "Hello"}, *first.output, result]
        client.responses.create(model=MODEL, input=history, reasoning={"effort": "none"})
    function = json.dumps({"name": "weather", "arguments": ARGUMENTS}, ensure_ascii=False)
    assert script.prompt(server.service) == (
        "<|im_start|>user\nHello<|im_end|>\n"
        f"<|im_start|>assistant\nI will look.<tool_call>{function}</tool_call><|im_end|>\n"
        "<|im_start|>tool\nSnow<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>"
    )


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "the server keeps no answers"),
        ({"background": True}, "background", "the server keeps no answers"),
        ({"store": True}, "store", "the server keeps no answers"),
        ({"truncation": "auto"}, "truncation", "'disabled'"),
        ({"extra_body": {"colour": 1}}, "colour", "no parameter"),
        ({"text": {"verbosity": "low"}}, "verbosity", "verbosity is not supported"),
        ({"tools": [{"type": "web_search"}]}, "tools", "'web_search'"),
        ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice", "'mcp'"),
        ({"tool_choice": "required"}, "tool_choice", "asks for a tool"),
        ({"include": ["message.output_text.logprobs"]}, "include.0", "'reasoning.encrypted_content'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "item_reference"),
        ({"input": [{"type": ["message"]}]}, "input.0.other.type", "Input should be 'item_reference'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "input_image"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "[]"}]},
            "input[0].arguments",
            "no JSON object",
        ),
        (
            {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]},
            "input[0].encrypted_content",
            "encrypted by another server",
        ),
        ({"max_output_tokens": 2**30}, "max_output_tokens", "max_output_tokens asks for"),
    ],
)
def test_wrong_request_is_refused_by_name(
    client: openai.OpenAI, change: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(**{**REQUEST, **change})
    assert raised.value.param == param
    assert words in raised.value.body["message"]


def test_answer_is_json_of_the_schema(client: openai.OpenAI) -> None:
    text_format = {"type": "json_schema", "name": "weather", "schema": PARAMETERS, "strict": True}
    asked = {**REQUEST, "text": {"format": text_format}, "reasoning": {"effort": "none"}}
    with client.responses.stream(**asked, temperature=0) as stream:
        response = stream.get_final_response()
    answer = json.loads(response.output_text)
    assert answer.keys() == {"city", "snow"}
    assert answer["city"] in ("Köln", "Oslo")
    assert response.text.format.type == "json_schema"


def test_function_that_must_be_called_binds_the_answer(server: RunningServer, client: openai.OpenAI) -> None:
    for choice, is_bound in (("auto", False), ("required", True), ({"type": "function", "name": "weather"}, True)):
        script = Script(pieces=in_pieces(ANSWER))
        with scripted(server.service, script):
            response = client.responses.create(**REQUEST, tools=[WEATHER], tool_choice=choice)
        assert ("constraint" in script.requests[0].options[0]) is is_bound
        assert response.model_dump()["tool_choice"] == choice
