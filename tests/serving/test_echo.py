"""Prompts in front of their answers: their text, and log-probabilities as a session scores them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai.types.completion_choice import Logprobs
from support.server import MODEL, RunningServer, client_of, running_server
from support.text_bundles import tiny_text_bundle

from sala_export.runtime.scores import Scores
from sala_export.serving.echo import Echo, echoed
from sala_export.serving.settings import Settings

PROMPT = "The quick brown fox jumps over the lazy dog, \N{GRINNING FACE} and \u00e9t\u00e9 <|im_end|> too"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(tiny_text_bundle(), Settings(model_names=(MODEL,), max_context=1024)) as running:
        yield running


def scores_of(server: RunningServer, ids: list[int], top: int) -> Scores:
    return server.service.model.session(max_context=1024).score(ids, top=top)


def long_ids(count: int) -> list[int]:
    ids: list[int] = np.random.default_rng(count).integers(0, 400, count).tolist()
    return ids


def assert_scored(server: RunningServer, found: Logprobs, scores: Scores) -> None:
    """The first tokens of an answer are a prompt of these scores."""
    count = len(scores.token_ids)
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert found.token_logprobs[0] is None
    assert found.top_logprobs[0] is None
    np.testing.assert_allclose(as_array(found.token_logprobs[1:count]), scores.logprobs[1:], atol=1e-4)
    for place in range(1, count):
        listed = found.top_logprobs[place]
        if scores.top_ids.shape[1]:
            assert max(listed.values()) == pytest.approx(scores.top_logprobs[place, 0], abs=1e-4)
        # A likelier token may have the same text.
        assert listed[server.service.token_text(scores.token_ids[place])] >= found.token_logprobs[place]


def as_array(values: list[float] | list[float | None]) -> NDArray[np.float64]:
    return np.array(values, np.float64)


@pytest.mark.parametrize("count", [1, 2, 300, 700])  # the last is attended sparsely
def test_request_of_lm_evaluation_harness_gets_the_scores_of_a_session(server: RunningServer, count: int) -> None:
    prompts = [long_ids(count), long_ids(40)]
    request: dict[str, Any] = {"max_tokens": 1, "temperature": 0, "logprobs": 1, "seed": 1234, "echo": True}
    answer = client_of(server).completions.create(model=MODEL, prompt=prompts, **request)
    for choice, ids in zip(answer.choices, prompts, strict=True):
        assert choice.logprobs is not None
        assert_scored(server, choice.logprobs, scores_of(server, ids, 1))
        assert choice.logprobs.tokens is not None
        assert len(choice.logprobs.tokens) == len(ids) + 1
        drawn = choice.logprobs.token_logprobs[-1]
        assert [*choice.logprobs.top_logprobs[-1].values()] == [drawn]


def test_scores_do_not_come_from_a_context_that_is_kept(server: RunningServer) -> None:
    ids = long_ids(200)
    client = client_of(server)
    client.completions.create(model=MODEL, prompt=ids, max_tokens=1)
    plain = client.completions.create(model=MODEL, prompt=ids, max_tokens=1, echo=True)
    assert plain.usage.prompt_tokens_details.cached_tokens > 100
    for _ in range(2):
        answer = client.completions.create(model=MODEL, prompt=ids, max_tokens=1, echo=True, logprobs=3)
        assert answer.usage.prompt_tokens_details.cached_tokens == 0
        assert_scored(server, answer.choices[0].logprobs, scores_of(server, ids, 3))


@pytest.mark.parametrize("form", ["text", "ids", "text as it stands"])
def test_tokens_and_offsets_are_those_of_the_text(server: RunningServer, form: str) -> None:
    tokenizer = server.service.tokenizer
    ids = tokenizer.encode(PROMPT, add_special_tokens=form == "text")
    prompt = ids if form == "ids" else PROMPT
    answer = client_of(server).completions.create(
        model=MODEL,
        prompt=prompt,
        max_tokens=4,
        temperature=0,
        echo=True,
        logprobs=2,
        extra_body={"add_special_tokens": form == "text"},
    )
    choice = answer.choices[0]
    assert choice.text.startswith(PROMPT)
    tokens, offsets = choice.logprobs.tokens, choice.logprobs.text_offset
    assert len(tokens) == len(ids) + 4
    assert "".join(tokens[: len(ids)]) == PROMPT
    assert offsets == [len("".join(tokens[:place])) for place in range(len(tokens))]
    assert "<|im_end|>" in tokens
    assert answer.usage.prompt_tokens == len(ids)


@pytest.mark.parametrize("logprobs", [None, 2])
def test_each_choice_begins_with_the_prompt_streamed_or_whole(server: RunningServer, logprobs: int | None) -> None:
    client = client_of(server)
    request: dict[str, Any] = {"model": MODEL, "prompt": [PROMPT, "Two"], "n": 2, "max_tokens": 5, "seed": 3}
    alone = client.completions.create(**request)
    request |= {"echo": True, "logprobs": logprobs}
    answer = client.completions.create(**request)
    prompts = [PROMPT, PROMPT, "Two", "Two"]
    assert [each.text for each in answer.choices] == [
        prompt + each.text for prompt, each in zip(prompts, alone.choices, strict=True)
    ]
    texts, tokens = [""] * 4, [[], [], [], []]
    for chunk in client.completions.create(**request, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.text
        if choice.logprobs is not None:
            found = choice.logprobs
            tokens[choice.index] += zip(found.tokens, found.token_logprobs, found.text_offset, strict=True)
    assert texts == [each.text for each in answer.choices]
    for place, each in enumerate(answer.choices):
        if logprobs is None:
            assert each.logprobs is None
            continue
        whole = each.logprobs
        listed = [*zip(whole.tokens, whole.token_logprobs, whole.text_offset, strict=True)]
        assert [(text, at) for text, _, at in tokens[place]] == [(text, at) for text, _, at in listed]
        np.testing.assert_allclose(
            as_array([value for _, value, _ in tokens[place]][1:]),
            as_array([value for _, value, _ in listed][1:]),
            atol=1e-4,
        )


@pytest.mark.parametrize("echo", [False, True])
def test_no_new_tokens_only_read_the_prompt_up_to_a_full_context(server: RunningServer, echo: bool) -> None:
    ids = long_ids(1024)
    extra = {"logprobs": 0} if echo else {}
    answer = client_of(server).completions.create(model=MODEL, prompt=ids, max_tokens=0, echo=echo, **extra)
    choice = answer.choices[0]
    assert (choice.finish_reason, answer.usage.completion_tokens) == ("length", 0)
    if not echo:
        assert choice.text == ""
        return
    assert len(choice.logprobs.tokens) == 1024
    assert all(len(each) == 1 for each in choice.logprobs.top_logprobs[1:])
    assert_scored(server, choice.logprobs, scores_of(server, ids, 0))


def test_more_than_fits_into_an_answer_is_refused(server: RunningServer) -> None:
    request: dict[str, Any] = {"model": MODEL, "prompt": [long_ids(1000)] * 128, "max_tokens": 0}
    with pytest.raises(openai.BadRequestError) as caught:
        client_of(server).completions.create(**request, echo=True, logprobs=2)
    assert caught.value.body["param"] == "echo"
    assert caught.value.body["message"] == (
        "echo and logprobs 2 ask for 384000 log-probabilities of 128000 tokens of prompts, and one answer has at most "
        "262144: ask for fewer, send less at once, or use sala-export eval"
    )
    with pytest.raises(openai.BadRequestError, match="holds 1024 tokens"):
        client_of(server).completions.create(model=MODEL, prompt=[7] * 1025, max_tokens=0, echo=True)


def test_tokenizer_tells_its_special_tokens_and_template(server: RunningServer) -> None:
    info = httpx2.get(f"{server.url}/tokenizer_info").json()
    tokenizer = server.service.tokenizer
    assert info["chat_template"] == tokenizer.chat.source
    assert {name: info[name] for name in tokenizer.special_tokens} == tokenizer.special_tokens
    ids = [tokenizer.encode(info[name], add_special_tokens=False) for name in ("bos_token", "eos_token")]
    assert ids[0] == tokenizer.around_texts[0]
    assert ids[1][0] in server.service.stop_tokens


def test_vocabulary_smaller_than_what_is_asked_for_lists_all_of_it(server: RunningServer) -> None:
    scores = Scores(
        token_ids=np.array([1, 0], np.int32),
        logprobs=np.array([np.nan, -1.0]),
        top_ids=np.array([[-1, -1, -1], [0, 1, -1]], np.int32),
        top_logprobs=np.array([[np.nan, np.nan, np.nan], [-1.0, -2.0, np.nan]]),
    )
    echo = Echo(text="two", has_added_tokens=False, logprobs=3)
    _, tokens = echoed(echo, server.service.tokenizer, scores.token_ids, scores)
    assert [token.logprobs and token.logprobs.top for token in tokens] == [None, ((0, -1.0), (1, -2.0))]
