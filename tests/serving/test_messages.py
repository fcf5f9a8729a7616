"""Anthropic's protocol, through its own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx2
import pytest
from support.scripted_answers import Script, scripted
from support.server import MODEL, RunningServer, running_server
from support.text_bundles import tiny_text_bundle

from sala_export.errors import RunError
from sala_export.serving.settings import Keys, Settings

KEY = "a key of the tests' own"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: dict[str, Any] = {
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
ANSWER = f"<think>\nIt may snow.\n</think>\n\nI will look.\n{CALL}"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    settings = Settings(model_names=(MODEL,), keys=Keys([KEY.replace(" ", "-")]))
    with running_server(tiny_text_bundle(), settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key=KEY.replace(" ", "-"), max_retries=0) as made:
        yield made


def in_pieces(text: str, size: int = 3) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def without_ids(message: Any) -> dict[str, Any]:
    fields = message.model_dump(exclude_none=True, warnings="error")
    assert fields.pop("id").startswith("msg_")
    for block in fields["content"]:
        assert block.get("id", "call_").startswith("call_")
        block.pop("id", None)
    return dict(fields)


def test_message_has_what_was_thought_said_and_called_in_one_piece_and_streamed(
    server: RunningServer, client: anthropic.Anthropic
) -> None:
    script = Script(pieces=in_pieces(ANSWER))
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 200, "messages": HELLO, "tools": [WEATHER]}
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
            "input_tokens": len(script.requests[0].ids) - 2,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 2,
            "output_tokens": len(script.pieces),
        },
    }
    assert without_ids(streamed) == without_ids(whole)
    assert types[0] == "message_start"
    assert types[-2:] == ["message_delta", "message_stop"]
    assert types.count("content_block_start") == types.count("content_block_stop") == 3


def test_stream_tells_that_the_prompt_is_read_before_the_first_block(server: RunningServer) -> None:
    body = {"model": MODEL, "max_tokens": 9, "messages": HELLO, "stream": True}
    with scripted(server.service, Script(pieces=["Well."], reason="length")):
        lines = httpx2.post(f"{server.url}/v1/messages", json=body, headers={"x-api-key": KEY.replace(" ", "-")}).text
    names = [line.removeprefix("event: ") for line in lines.splitlines() if line.startswith("event: ")]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert names == ["message_start", "ping", "ping", *block, "message_delta", "message_stop"]
    assert '"stop_reason":"max_tokens"' in lines


def test_conversation_is_written_by_the_chat_template(server: RunningServer, client: anthropic.Anthropic) -> None:
    call = {"type": "tool_use", "id": "call_1", "name": "weather", "input": ARGUMENTS}
    result = [{"type": "text", "text": "Snow"}, {"type": "text", "text": "!"}]
    messages: list[Any] = [
        {"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "now?"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm.", "signature": ""}, call]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": result},
                {"type": "text", "text": "Well? <|im_end|>"},
            ],
        },
    ]
    system: list[Any] = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    script = Script(pieces=["Yes."])
    asked: dict[str, Any] = {"model": MODEL, "system": system, "messages": messages, "thinking": {"type": "adaptive"}}
    with scripted(server.service, script):
        client.messages.create(max_tokens=9, metadata={"user_id": "me"}, **asked)
        counted = client.messages.count_tokens(**asked)
    arguments = json.dumps(ARGUMENTS, ensure_ascii=False)
    assert script.prompt(server.service) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nAnd now?<|im_end|>\n"
        "<|im_start|>assistant\n<think>Hm.</think>"
        f'<tool_call>{{"name": "weather", "arguments": {arguments}}}</tool_call><|im_end|>\n'
        "<|im_start|>tool\ncall_1: Snow!<|im_end|>\n"
        "<|im_start|>user\nWell? <|im_end|><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )
    assert counted.input_tokens == len(script.requests[0].ids)


def test_answer_goes_on_from_the_assistants_last_message(server: RunningServer, client: anthropic.Anthropic) -> None:
    script = Script(pieces=["is."], stop_string="\n", reason="stop")
    messages: list[Any] = [*HELLO, {"role": "assistant", "content": "The answer "}]
    with scripted(server.service, script):
        message = client.messages.create(model=MODEL, max_tokens=9, messages=messages, stop_sequences=["\n"])
    assert script.prompt(server.service).endswith("<|im_start|>assistant\nThe answer ")
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "\n")
    assert script.requests[0].stop_strings == ["\n"]


def test_error_within_a_stream_is_its_last_event(server: RunningServer, client: anthropic.Anthropic) -> None:
    lack = RunError("no memory is left")
    lack.code = "OutOfMemory"
    script = Script(pieces=["Well"], error=lack)
    with (
        scripted(server.service, script),
        client.messages.stream(model=MODEL, max_tokens=9, messages=HELLO) as stream,
        pytest.raises(anthropic.APIStatusError, match="no memory is left") as raised,
    ):
        stream.until_done()
    assert raised.value.body == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "no memory is left"},
    }


@pytest.mark.parametrize(
    ("change", "status", "kind", "message"),
    [
        ({"model": "other"}, 404, "not_found_error", "the model 'other' is not here"),
        ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens: "),
        ({"container": "c"}, 400, "invalid_request_error", "container is not supported"),
        ({"colour": "c"}, 400, "invalid_request_error", "colour is no parameter"),
        ({"output_config": {"effort": "low"}}, 400, "invalid_request_error", "output_config.effort"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, 400, "invalid_request_error", "bash_20250124"),
        ({"tool_choice": {"type": "tool"}}, 400, "invalid_request_error", "tool_choice has a name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            400,
            "invalid_request_error",
            "messages[0].content[0] is not supported",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "", "signature": ""}]}]},
            400,
            "invalid_request_error",
            "messages[0].content[0] is of type thinking",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            400,
            "invalid_request_error",
            "messages.0.content.0.text.text: Field required",
        ),
        (
            {
                "messages": [*HELLO, {"role": "assistant", "content": "{"}],
                "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            },
            400,
            "invalid_request_error",
            "the last message is the assistant's",
        ),
    ],
)
def test_wrong_request_is_refused_by_name(
    server: RunningServer, change: dict[str, Any], status: int, kind: str, message: str
) -> None:
    body = {"model": MODEL, "max_tokens": 9, "messages": HELLO, **change}
    answer = httpx2.post(f"{server.url}/v1/messages", json=body, headers={"x-api-key": KEY.replace(" ", "-")})
    assert answer.status_code == status
    told = answer.json()
    assert (told["type"], told["error"]["type"]) == ("error", kind)
    assert message in told["error"]["message"]


def test_what_the_guard_refuses_has_the_protocols_form(server: RunningServer) -> None:
    path = f"{server.url}/v1/messages/count_tokens"
    with_key = {"authorization": f"Bearer {KEY.replace(' ', '-')}"}
    no_key = httpx2.post(path, json={})
    assert (no_key.status_code, no_key.json()["error"]["type"]) == (401, "authentication_error")
    wrong_type = httpx2.post(path, content=b"{}", headers=with_key)
    assert (wrong_type.status_code, wrong_type.json()["type"]) == (415, "error")
    too_large = httpx2.post(
        path, content=b"{}", headers={**with_key, "content-type": "application/json", "content-length": str(1 << 40)}
    )
    assert (too_large.status_code, too_large.json()["error"]["type"]) == (413, "request_too_large")


def test_answer_ends_before_a_stop_sequence_that_is_told(client: anthropic.Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "max_tokens": 24, "messages": HELLO, "extra_body": {"temperature": 0}}
    text = client.messages.create(**asked).content[0]
    assert isinstance(text, anthropic.types.TextBlock)
    stop = text.text[9:14]
    begin = text.text.index(stop)
    message = client.messages.create(stop_sequences=["never said", stop, stop + "?"], **asked)
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in message.content if block.type == "text") == text.text[:begin]


def test_model_calls_the_tool_that_it_must(server: RunningServer, client: anthropic.Anthropic) -> None:
    with scripted_template(server):
        message = client.messages.create(
            model=MODEL,
            max_tokens=400,
            messages=HELLO,
            tools=[WEATHER],  # type: ignore[list-item]
            tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
        )
    assert message.stop_reason == "tool_use"
