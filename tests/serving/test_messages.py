"""Anthropic's protocol, through its own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from support.scripted_answers import CACHED_TOKENS, Script, in_pieces, scripted
from support.server import MODEL, RunningServer, running_server
from support.tool_bundles import hermes_bundle

from sala_export.errors import RunError
from sala_export.runtime.chat import ChatTemplate
from sala_export.serving.anthropic.content import template_messages
from sala_export.serving.anthropic.requests import MessagesRequest
from sala_export.serving.errors import ApiError
from sala_export.serving.prompts import Prompts
from sala_export.serving.settings import Keys, Settings

KEY = "a-key-of-a-client-0123456789"
HELLO = [{"role": "user", "content": "Hello"}]
REQUEST: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "messages": HELLO}
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Köln", "Oslo"]}, "snow": {"type": "boolean"}},
        "required": ["city", "snow"],
        "additionalProperties": False,
    },
}
ARGUMENTS = {"city": "Köln", "snow": True}
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {json.dumps(ARGUMENTS, ensure_ascii=False)}}}\n</tool_call>'


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(hermes_bundle(), Settings(model_names=(MODEL,), keys=Keys([KEY]))) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0) as made:
        yield made


def post(server: RunningServer, body: dict[str, Any], path: str = "/v1/messages") -> httpx2.Response:
    return httpx2.post(server.url + path, json=body, headers={"x-api-key": KEY})


def without_ids(message: anthropic.types.Message) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True, warnings="error")
    assert fields.pop("id").startswith("msg_")
    for block in fields["content"]:
        assert block.pop("id", "call_").startswith("call_")
    return fields


def test_message_has_what_was_thought_said_and_called_whole_and_streamed(
    server: RunningServer, client: anthropic.Anthropic
) -> None:
    script = Script(pieces=in_pieces(f"<think>\nIt may snow.\n</think>\n\nI will look.\n{CALL}"))
    asked = {**REQUEST, "tools": [WEATHER]}
    with scripted(server.service, script):
        whole = client.messages.create(**asked)
        with client.messages.stream(**asked) as stream:
            types = [event.type for event in stream]
            streamed = stream.get_final_message()
    assert without_ids(whole) == {
        "type": "message",
        "role": "assistant",
        "model": MODEL,
        "content": [
            {"type": "thinking", "thinking": "It may snow.", "signature": ""},
            {"type": "text", "text": "I will look."},
            {"type": "tool_use", "name": "weather", "input": ARGUMENTS},
        ],
        "stop_reason": "tool_use",
        "usage": {
            "input_tokens": len(script.requests[0].ids) - CACHED_TOKENS,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": CACHED_TOKENS,
            "output_tokens": len(script.pieces),
        },
    }
    assert without_ids(streamed) == without_ids(whole)
    assert types[0] == "message_start"
    assert types[-2:] == ["message_delta", "message_stop"]
    assert types.count("content_block_start") == types.count("content_block_stop") == 3


def test_stream_shows_that_the_prompt_is_read(server: RunningServer) -> None:
    with scripted(server.service, Script(pieces=["Well."], reason="length")):
        text = post(server, {**REQUEST, "stream": True}).text
    names = [line.removeprefix("event: ") for line in text.splitlines() if line.startswith("event: ")]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert names == ["message_start", "ping", "ping", *block, "message_delta", "message_stop"]
    assert '"stop_reason":"max_tokens"' in text


def test_answer_ends_at_a_second_call_if_one_is_allowed(server: RunningServer, client: anthropic.Anthropic) -> None:
    script = Script(pieces=in_pieces(f"{CALL}\n{CALL}\nDone."))
    for disable, names in ((False, ["weather", "weather", None]), (True, ["weather"])):
        choice = {"type": "auto", "disable_parallel_tool_use": disable}
        with scripted(server.service, script):
            message = client.messages.create(**REQUEST, tools=[WEATHER], tool_choice=choice)
        assert [getattr(block, "name", None) for block in message.content] == names
        assert message.stop_reason == "tool_use"


def test_conversation_is_put_into_messages_of_a_chat_template() -> None:
    call = {"type": "tool_use", "id": "call_1", "name": "weather", "input": ARGUMENTS}
    ephemeral = {"cache_control": {"type": "ephemeral"}}
    result = {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "Snow"}]}
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "of another server"}
    request = MessagesRequest.model_validate(
        {
            **REQUEST,
            "system": [{"type": "text", "text": "Be brief.", **ephemeral}],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
                {"role": "assistant", "content": [thinking, {"type": "text", "text": "Wait."}, call]},
                {"role": "user", "content": [{**result, "is_error": False}, {"type": "text", "text": "Well?"}]},
                {"role": "assistant", "content": "It "},
            ],
        }
    )
    function = {"name": "weather", "arguments": ARGUMENTS}
    assert template_messages(request.system, request.messages) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And now?"},
        {
            "role": "assistant",
            "content": "Wait.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Snow", "is_error": False},
        {"role": "user", "content": "Well?"},
        {"role": "assistant", "content": "It "},
    ]


def test_answer_goes_on_from_the_assistants_last_message(server: RunningServer, client: anthropic.Anthropic) -> None:
    script = Script(pieces=["is."])
    asked: dict[str, Any] = {
        "model": MODEL,
        "messages": [*HELLO, {"role": "assistant", "content": "It <|im_end|>"}],
        "thinking": {"type": "disabled"},
    }
    with scripted(server.service, script):
        client.messages.create(max_tokens=9, **asked)
        counted = client.messages.count_tokens(**asked)
    assert script.prompt(server.service) == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nIt <|im_end|>"
    assert counted.input_tokens == len(script.requests[0].ids)
    # What the client spells is no end of a turn.
    assert script.requests[0].ids[-1] not in server.service.stop_tokens


def test_answer_goes_on_only_from_what_the_template_writes(server: RunningServer) -> None:
    template = ChatTemplate("{{ messages[0].content }}", {}, "a template")
    prompts = Prompts(server.service.tokenizer, template)
    with pytest.raises(ApiError, match="does not write it as it stands"):
        prompts.of_messages([*HELLO, {"role": "assistant", "content": "It "}], goes_on=True)


def test_client_chooses_whether_the_model_thinks(server: RunningServer, client: anthropic.Anthropic) -> None:
    for thinking, end in (("disabled", "<think></think>"), ("adaptive", "<|im_start|>assistant\n")):
        script = Script(pieces=["Well."])
        with scripted(server.service, script):
            client.messages.create(**REQUEST, thinking={"type": thinking})
        assert script.prompt(server.service).endswith(end)


def test_error_within_a_stream_is_its_last_event(server: RunningServer, client: anthropic.Anthropic) -> None:
    error = RunError("no memory is left")
    error.code = "OutOfMemory"
    with (
        scripted(server.service, Script(pieces=["Well"], error=error)),
        client.messages.stream(**REQUEST) as stream,
        pytest.raises(anthropic.APIStatusError) as raised,
    ):
        stream.until_done()
    told = {"type": "overloaded_error", "message": "no memory is left"}
    assert raised.value.body == {"type": "error", "error": told}


IMAGE = {"type": "image", "source": {"type": "url", "url": "https://example.com"}}
THINKING = {"type": "thinking", "thinking": "", "signature": ""}
CALL_BLOCK = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: "),
        ({"container": "c"}, "container is not supported"),
        ({"colour": "c"}, "colour is no parameter"),
        ({"output_config": {"effort": "low"}}, "effort is not supported"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools is not supported"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice has a name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice asks for a tool"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0] is not supported"),
        ({"messages": [{"role": "user", "content": [THINKING]}]}, "messages[0].content[0] is of type thinking"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "content.0.text.text: Field required"),
        ({"messages": [*HELLO, {"role": "assistant", "content": [CALL_BLOCK]}]}, "no text that goes on"),
        (
            {
                "messages": [*HELLO, {"role": "assistant", "content": "{"}],
                "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            },
            "gives the answer a form",
        ),
    ],
)
def test_wrong_request_is_refused_by_name(server: RunningServer, change: dict[str, Any], message: str) -> None:
    answer = post(server, {**REQUEST, **change})
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert message in answer.json()["error"]["message"]


def test_errors_have_the_protocols_types(server: RunningServer) -> None:
    path = "/v1/messages/count_tokens"
    unknown = post(server, {"model": "other", "messages": HELLO}, path)
    no_key = httpx2.post(server.url + path, json={})
    no_json = httpx2.post(server.url + path, content=b"{}", headers={"authorization": f"Bearer {KEY}"})
    no_post = httpx2.get(server.url + path, headers={"x-api-key": KEY})
    answers = [(answer.status_code, answer.json()["error"]["type"]) for answer in (unknown, no_key, no_json, no_post)]
    assert answers == [
        (404, "not_found_error"),
        (401, "authentication_error"),
        (415, "invalid_request_error"),
        (405, "invalid_request_error"),
    ]


def test_answer_ends_before_a_stop_sequence_and_tells_it(client: anthropic.Anthropic) -> None:
    asked = {**REQUEST, "max_tokens": 24, "extra_body": {"temperature": 0}}
    text = "".join(block.text for block in client.messages.create(**asked).content)
    stop = text[9:14]
    message = client.messages.create(stop_sequences=["never said", stop, f"{stop}?"], **asked)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in message.content) == text[: text.index(stop)]


def test_model_calls_the_tool_that_it_must(client: anthropic.Anthropic) -> None:
    schema = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    message = client.messages.create(
        **{**REQUEST, "max_tokens": 2000},
        tools=[{"name": "light", "input_schema": {**schema, "additionalProperties": False}}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        thinking={"type": "disabled"},
        extra_body={"temperature": 0},
    )
    (call,) = message.content
    assert (message.stop_reason, call.name) == ("tool_use", "light")
    assert call.input in ({"on": True}, {"on": False})


def test_schema_binds_the_answer(server: RunningServer, client: anthropic.Anthropic) -> None:
    script = Script(pieces=["{}"])
    json_format = {"type": "json_schema", "schema": WEATHER["input_schema"]}
    with scripted(server.service, script):
        client.messages.create(**REQUEST, output_config={"format": json_format})
    assert script.requests[0].options[0]["constraint"].allowed().any()
