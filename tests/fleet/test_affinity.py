"""Which requests belong to one conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.datastructures import Headers

from sala_export.fleet import affinity
from sala_export.fleet.affinity import context_key, conversation_key

BOOK = "It was the best of times. " * 1000


def key(body: Any, **headers: str) -> str:
    given = Headers({name.replace("_", "-"): value for name, value in headers.items()})
    return conversation_key(given, json.dumps(body).encode())


def chat(*contents: str, system: str = "Be brief.") -> dict[str, Any]:
    roles = ("user", "assistant")
    turns = [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]
    return {"model": "model", "messages": [{"role": "system", "content": system}, *turns]}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat("Who?"), chat("Who?", "Natasha.", "Where?")),
        (chat(f"{BOOK} Who?"), chat(f"{BOOK} Where?")),
        ({"prompt": f"{BOOK} Who?"}, {"prompt": f"{BOOK} Where?", "max_tokens": 3}),
        ({"prompt": [5] * 9000}, {"prompt": [5] * 9001}),
        ({"system": "Be brief.", "messages": [{"role": "user", "content": [{"type": "text", "text": "Who?"}]}]},) * 2,
        (
            {"input": "Who?", "instructions": "Be brief."},
            {"input": "Who?", "instructions": "Be brief.", "stream": True},
        ),
        (chat("Who?") | {"context": "book"}, chat("Where?") | {"context": "book"}),
        (chat("Who?") | {"prompt_cache_key": "me"}, chat("Where?") | {"prompt_cache_key": "me"}),
    ],
)
def test_requests_of_one_conversation_have_one_key(one: Any, other: Any) -> None:
    assert key(one) == key(other) != ""


def test_requests_of_others_have_other_keys() -> None:
    bodies = [
        chat("Who?"),
        chat("Where?"),
        chat("Who?", system="Be long."),
        {"prompt": "Who?"},
        {"input": "Who?", "instructions": "Be kind."},
        chat("Who?") | {"context": "book"},
        chat("Who?") | {"prompt_cache_key": "book"},
    ]
    assert len({key(body) for body in bodies}) == len(bodies)


def test_what_comes_first_names_the_conversation() -> None:
    assert key(chat("Who?"), x_session_id="1") == key(chat("Where?"), X_Session_Id="1")
    assert key(chat("Who?"), x_session_id="1") != key(chat("Who?"), x_session_id="2")
    assert key(chat("Who?"), x_conversation_id="1") == key({}, x_correlation_id="1")
    assert key({"prompt_cache_key": "me"}, x_session_id="1") == key({}, x_session_id="1")
    # Where a named context is, a request must go, whatever else it says.
    assert key({"context": "book", "prompt_cache_key": "me"}, x_session_id="1") == context_key("book")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[1]", b"\xff", b"{}", b'{"messages": 0}', b'{"messages": NaN}'),
        *(b"[" * 100_000, b'{"prompt":' + b"[" * 990 + b"]" * 990 + b"}"),
    ],
    ids=range(9),
)
def test_what_says_nothing_is_no_error(body: bytes) -> None:
    assert conversation_key(Headers({}), body) == ""


def test_of_a_long_list_only_the_beginning_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [*range(5000), "what cannot be reached"]
    expected = key({"prompt": prompt})
    # Nothing writes the last of these as JSON.
    monkeypatch.setattr(affinity, "json_value", lambda _: {"prompt": [*prompt[:-1], object()]})
    assert key({}) == expected != ""
