"""Completions over HTTP: the same tokens, texts and log-probabilities as the session gives that they come from."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import openai
import pytest
from support.server import MODEL, RunningServer, client_of, running_server
from support.text_bundles import tiny_text_bundle

PROMPT = "The quick brown fox"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(tiny_text_bundle()) as running:
        yield running


def test_text_is_that_of_a_session(server: RunningServer) -> None:
    session = server.service.model.session()
    session.prefill(PROMPT)
    right = "".join(session.generate(max_new_tokens=40, temperature=0.8, seed=3, top_k=50, presence_penalty=1.0))
    request = {"model": MODEL, "prompt": PROMPT, "max_tokens": 40, "temperature": 0.8, "seed": 3}
    extra = {"extra_body": {"top_k": 50}, "presence_penalty": 1.0}
    client = client_of(server)
    assert client.completions.create(**request, **extra).choices[0].text == right
    streamed = client.completions.create(**request, **extra, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == right


def test_stop_string_ends_the_text_before_it(server: RunningServer) -> None:
    client = client_of(server)
    request = {"model": MODEL, "prompt": PROMPT, "max_tokens": 60, "temperature": 0}
    whole = client.completions.create(**request).choices[0].text
    stop = whole[10:14]
    answer = client.completions.create(**request, stop=[stop, "never in it"])
    assert answer.choices[0].text == whole[: whole.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    streamed = client.completions.create(**request, stop=stop, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole[: whole.index(stop)]


def test_log_probabilities_are_those_of_the_logits(server: RunningServer) -> None:
    answer = client_of(server).completions.create(
        model=MODEL, prompt=PROMPT, max_tokens=5, temperature=0, logprobs=3, extra_body={"repetition_penalty": 1.5}
    )
    logprobs = answer.choices[0].logprobs
    # What the end leaves of a character is part of no token.
    assert "".join(logprobs.tokens) == answer.choices[0].text.rstrip("\N{REPLACEMENT CHARACTER}")
    assert logprobs.text_offset == [sum(map(len, logprobs.tokens[:place])) for place in range(5)]
    session = server.service.model.session()
    logits = np.asarray(session.prefill(PROMPT), np.float64)
    right = logits - logits.max() - math.log(np.exp(logits - logits.max()).sum())
    likeliest = np.argsort(-right, kind="stable")[:3]
    assert [*logprobs.top_logprobs[0].values()] == pytest.approx(right[likeliest].tolist(), abs=1e-5)


def test_log_probabilities_of_a_chat_have_their_bytes(server: RunningServer) -> None:
    answer = client_of(server).chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hello"}],
        max_tokens=8,
        seed=1,
        logprobs=True,
        top_logprobs=2,
    )
    tokens = answer.choices[0].logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= token.top_logprobs[0].logprob for token in tokens)


def test_prompts_of_a_list_are_answered_in_their_order(server: RunningServer) -> None:
    client = client_of(server)
    request = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    alone = [client.completions.create(**request, prompt=prompt).choices[0].text for prompt in ("One", "Two")]
    answer = client.completions.create(**request, prompt=["One", "Two"], n=2)
    assert [choice.text for choice in answer.choices] == [alone[0], alone[0], alone[1], alone[1]]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]


def test_prompt_of_token_ids_is_that_of_its_text(server: RunningServer) -> None:
    client = client_of(server)
    request = {"model": MODEL, "max_tokens": 6, "temperature": 0}
    ids = server.service.tokenizer.encode(PROMPT)
    of_text = client.completions.create(**request, prompt=PROMPT).choices[0].text
    assert client.completions.create(**request, prompt=ids).choices[0].text == of_text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [512]}, "512"),
        ({"prompt": "x", "best_of": 2}, "best_of is not supported"),
        ({"prompt": "x", "suffix": "y"}, "suffix is not supported"),
        ({"prompt": "x", "stop": [""]}, "stop"),
        ({"prompt": "x", "logprobs": 21}, "logprobs"),
    ],
)
def test_refusals_name_what_is_wrong(server: RunningServer, fields: dict[str, object], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client_of(server).completions.create(model=MODEL, **fields)
    assert words in caught.value.body["message"]
