"""Chats over HTTP, with the official client, against the passkey model, whose answers are known."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import openai
import pytest
from support.passkey_text import WORDS, passkey_text, passkey_text_bundle, question
from support.server import MODEL, RunningServer, client_of, running_server

from sala_export.serving.settings import Settings

LENGTH = 3000
SAMPLING = {"model": MODEL, "temperature": 0, "max_tokens": 1}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(passkey_text_bundle()) as running:
        yield running


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_needles_are_found_and_the_text_is_read_once(server: RunningServer) -> None:
    text, needles = passkey_text(LENGTH)
    client = client_of(server)
    cached = []
    for needle in needles:
        answer = client.chat.completions.create(messages=asked(f"{text} {question(needle)}"), **SAMPLING)
        assert answer.choices[0].message.content == WORDS[needle.value]
        assert answer.choices[0].finish_reason == "length"
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (LENGTH + 2, 1)
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    # The first question leaves a checkpoint shortly before its end, the second one where the two differ.
    assert cached[0] == 0
    assert cached[1] >= LENGTH + 2 - 512
    assert cached[2:] == [LENGTH + 1] * 3


def test_conversation_goes_on_where_it_was(server: RunningServer) -> None:
    text, needles = passkey_text(LENGTH, seed=1)
    client = client_of(server)
    messages = asked(f"{text} {question(needles[0])}")
    for needle, following in zip(needles, [*needles[1:], None], strict=True):
        answer = client.chat.completions.create(messages=messages, **SAMPLING)
        content = answer.choices[0].message.content
        assert content == WORDS[needle.value]
        if following is not None:
            messages = [*messages, {"role": "assistant", "content": content}, *asked(question(following))]
    details = answer.usage.prompt_tokens_details
    assert answer.usage.prompt_tokens - details.cached_tokens <= 3


def test_stream_tells_progress_and_usage(server: RunningServer) -> None:
    text, needles = passkey_text(LENGTH, seed=2)
    stream = client_of(server).chat.completions.create(
        messages=asked(f"{text} {question(needles[2])}"),
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"return_progress": True},
        **SAMPLING,
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    content = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert content == [WORDS[needles[2].value]]
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason] == ["length"]
    assert (chunks[-1].choices, chunks[-1].usage.total_tokens) == ([], LENGTH + 3)
    processed = [chunk.prompt_progress["processed"] for chunk in chunks if hasattr(chunk, "prompt_progress")]
    assert processed == sorted(processed)
    assert (processed[0], processed[-1]) == (0, LENGTH + 2)
    assert len(processed) > 3


def test_choices_are_drawn_behind_one_reading(server: RunningServer) -> None:
    text, needles = passkey_text(LENGTH, seed=3)
    answer = client_of(server).chat.completions.create(
        messages=asked(f"{text} {question(needles[1])}"), n=3, **SAMPLING
    )
    assert [choice.message.content for choice in answer.choices] == [WORDS[needles[1].value]] * 3
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (LENGTH + 2, 3)


@pytest.mark.parametrize(
    ("fields", "status", "code", "words"),
    [
        ({"model": "other"}, 404, "model_not_found", "this server has model"),
        ({"extra_body": {"n_predict": 3}}, 400, "unknown_parameter", "n_predict is no parameter"),
        ({"extra_body": {"audio": {"voice": "x"}}}, 400, "unsupported_parameter", "audio is not supported"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"messages": [{"role": "user"}]}, 400, "invalid_value", "messages[0] has no content"),
        ({"temperature": -1}, 400, "invalid_value", "temperature"),
        ({"logit_bias": {"128": 1}}, 400, None, "logit_bias has token 128"),
        ({"top_logprobs": 3}, 400, "invalid_value", "set logprobs to true"),
        ({"max_tokens": 2**20}, 400, "context_length_exceeded", "1048576 tokens of context: the prompt has 1"),
        ({"tool_choice": "required"}, 400, "unsupported_parameter", "tool_choice is not supported"),
        ({"extra_body": {"chat_template_kwargs": {"x": 1}}}, 400, "invalid_value", "no variable 'x'"),
    ],
)
def test_refusals_name_what_is_wrong(
    server: RunningServer, fields: dict[str, object], status: int, code: str | None, words: str
) -> None:
    request = {"messages": asked("k1"), **SAMPLING, **fields}
    with pytest.raises(openai.APIStatusError) as caught:
        client_of(server).chat.completions.create(**request)
    assert (caught.value.status_code, caught.value.code) == (status, code)
    assert words in caught.value.body["message"]


def test_content_of_another_type_is_refused(server: RunningServer) -> None:
    parts = [{"type": "text", "text": "w40"}, {"type": "image_url", "image_url": {"url": "https://example.com"}}]
    with pytest.raises(openai.BadRequestError, match="the model reads text, and this is of type image_url"):
        client_of(server).chat.completions.create(messages=[{"role": "user", "content": parts}], **SAMPLING)


def test_parts_of_text_are_one_text(server: RunningServer) -> None:
    text, needles = passkey_text(200, seed=4)
    parts = [{"type": "text", "text": text + " "}, {"type": "text", "text": question(needles[3])}]
    answer = client_of(server).chat.completions.create(messages=[{"role": "user", "content": parts}], **SAMPLING)
    assert answer.choices[0].message.content == WORDS[needles[3].value]


def test_request_whose_client_leaves_ends() -> None:
    with running_server(passkey_text_bundle()) as server:
        stream = client_of(server).chat.completions.create(
            messages=asked(passkey_text(LENGTH)[0]), stream=True, model=MODEL, max_tokens=1_000_000
        )
        next(iter(stream))
        assert server.service.answers.requests == 1
        stream.close()
        wait_until(lambda: server.service.answers.requests == 0)


def test_one_request_too_many_is_told_to_wait() -> None:
    settings = Settings(model_names=(MODEL,), max_sessions=1, max_waiting=0)
    with running_server(passkey_text_bundle(), settings) as server:
        client = client_of(server)
        endless = client.chat.completions.create(messages=asked("k1"), model=MODEL, stream=True, max_tokens=1_000_000)
        next(iter(endless))
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(messages=asked("k2"), **SAMPLING)
        assert int(caught.value.response.headers["Retry-After"]) > 0
        endless.close()
        wait_until(lambda: server.service.answers.requests == 0)
        client.chat.completions.create(messages=asked("k2"), **SAMPLING)


def test_server_that_ends_lets_answers_end() -> None:
    with running_server(passkey_text_bundle()) as server:
        client = client_of(server)
        stream = client.chat.completions.create(messages=asked("k1"), stream=True, model=MODEL, max_tokens=2000)
        first = next(iter(stream))
        ending = threading.Thread(target=server.end)
        ending.start()
        chunks = [first, *stream]
        ending.join()
    assert chunks[-1].choices[0].finish_reason == "length"


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)
