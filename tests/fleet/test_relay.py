"""The front of a fleet, with replicas that a test has written down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Scope

from sala_export.fleet import relay
from sala_export.fleet.relay import Fleet, NoRoomError, ReplicaLostError, front_app
from sala_export.serving.settings import Keys, Settings

START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
EVENTS: Message = {**START, "headers": [(b"content-type", b"text/event-stream")]}
CHAT = "/v1/chat/completions"
KEY = "0123456789abcdef0123"


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Replicas:
    """What each call of a replica does: it sends messages, or fails where an error stands."""

    def __init__(self, *calls: Sequence[Message | Exception]) -> None:
        self.calls = [*calls]
        self.asked: list[tuple[dict[str, Any], bytes, str]] = []

    async def __call__(self, scope: dict[str, Any], body: bytes, key: str) -> AsyncIterator[Message]:
        self.asked.append((scope, body, key))
        for step in self.calls.pop(0):
            if isinstance(step, Exception):
                raise step
            yield step


def front_of(replicas: Replicas, *, is_well: bool = True, **settings: Any) -> ASGIApp:
    async def metrics() -> bytes:
        return b"sala_up 1\n"

    async def health() -> bool:
        return is_well

    given = Settings(model_names=("model",), **{"max_body_bytes": 1000, **settings})
    return front_app(Fleet(ask=replicas, metrics=metrics, is_well=health), given, tries=3)


def client_of(replicas: Replicas, **settings: Any) -> TestClient:
    return TestClient(front_of(replicas, **settings), base_url="http://127.0.0.1")


def test_request_goes_to_another_replica_until_an_answer_has_begun() -> None:
    replicas = Replicas([ReplicaLostError()], [START, ReplicaLostError()], [START, part(b"[1]", more=False)])
    answer = client_of(replicas).post(CHAT, json={"messages": [{"role": "user", "content": "Hi"}]})
    assert (answer.status_code, answer.json(), answer.headers["x-sala-tries"]) == (200, [1], "3")
    assert len(replicas.asked) == 3
    assert len({(scope["path"], body, key) for scope, body, key in replicas.asked}) == 1
    assert replicas.asked[0][2]


def test_request_that_kills_each_replica_is_given_up() -> None:
    answer = client_of(Replicas(*[[ReplicaLostError()]] * 3)).post(CHAT, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
    assert answer.headers["retry-after"]


@pytest.mark.parametrize(
    ("path", "begins"), [(CHAT, 'data: {"error"'), ("/v1/messages", 'event: error\ndata: {"type":"error"')]
)
def test_stream_that_has_begun_ends_with_an_error(path: str, begins: str) -> None:
    replicas = Replicas([EVENTS, part(b"data: {}\n\n", more=True), ReplicaLostError()])
    text = client_of(replicas).post(path, json={}).text
    assert text.startswith("data: {}\n\n" + begins)
    assert "send the request again" in text
    assert len(replicas.asked) == 1


def test_answer_in_one_piece_that_has_begun_breaks_off() -> None:
    replicas = Replicas([START, part(b"[1,", more=True), ReplicaLostError()])
    with pytest.raises(ReplicaLostError):
        client_of(replicas).post(CHAT, json={})


def test_full_fleet_says_when_to_try_again() -> None:
    answer = client_of(Replicas([NoRoomError()])).post(CHAT, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")
    assert answer.headers["retry-after"]


def test_what_a_server_refuses_reaches_no_replica() -> None:
    replicas = Replicas()
    client = client_of(replicas, keys=Keys([KEY]))
    assert client.post(CHAT, json={}).status_code == 401
    assert client.get("/metrics").status_code == 401
    keyed = {"Authorization": f"Bearer {KEY}"}
    assert client.post(CHAT, content=b"x" * 2000, headers={**keyed, "Content-Type": "text/html"}).status_code == 415
    assert client.post(CHAT, json={"prompt": "x" * 2000}, headers=keyed).status_code == 413
    text = {**keyed, "Content-Type": "text/plain"}
    assert client.post("/v1/contexts?name=book", content=iter([b"x" * 2000]), headers=text).status_code == 413
    assert client.get("/metrics", headers=keyed).text == "sala_up 1\n"
    assert not replicas.asked


def test_page_of_an_origin_asks_without_a_key_whether_it_may_use_one() -> None:
    client = client_of(Replicas(), keys=Keys([KEY]), cors_origins=("https://page.example",))
    origin = {"Origin": "https://page.example"}
    asked = client.options(CHAT, headers={**origin, "Access-Control-Request-Method": "POST"})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, "https://page.example")
    assert client.post(CHAT, json={}, headers=origin).headers["access-control-allow-origin"] == "https://page.example"


def test_questions_about_a_context_go_where_it_was_read() -> None:
    whole = [START, part(b"{}", more=False)]
    replicas = Replicas(whole, whole, whole, whole)
    client = client_of(replicas)
    client.post("/v1/contexts?name=book&stream=true", content=b"text", headers={"Content-Type": "text/plain"})
    client.post(CHAT, content=json.dumps({"context": "book"}), headers={"Content-Type": "application/json"})
    client.delete("/v1/contexts/book")
    client.get("/v1/models")
    reading, asking, deleting, listing = (key for _, _, key in replicas.asked)
    assert reading == asking == deleting != listing == ""


def test_large_body_is_looked_at_beside_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    in_loop: list[int] = []

    def key(scope: Scope, body: bytes) -> str:
        with suppress(RuntimeError):
            asyncio.get_running_loop()
            in_loop.append(len(body))
        return ""

    monkeypatch.setattr(relay, "_key", key)
    whole = [START, part(b"{}", more=False)]
    client = client_of(Replicas(whole, whole), max_body_bytes=1 << 20)
    for size in (1000, 1 << 16):
        body = b'"' + b"x" * (size - 2) + b'"'
        assert client.post(CHAT, content=body, headers={"Content-Type": "application/json"}).status_code == 200
    assert in_loop == [1000]


def test_health_needs_no_room_at_a_replica_but_a_replica() -> None:
    answer = client_of(Replicas([NoRoomError()])).get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    answer = client_of(Replicas(), is_well=False).get("/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_replica")


def test_upload_of_a_client_that_leaves_is_not_passed_on() -> None:
    replicas, sent = Replicas(), []
    messages: list[Message] = [
        {"type": "http.disconnect"},
        {"type": "http.request", "body": b"half", "more_body": True},
    ]

    async def receive() -> Message:
        return messages.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"text/plain")]
        path = {"path": "/v1/contexts", "query_string": b"name=book"}
        await front_of(replicas)({"type": "http", "method": "POST", "headers": headers, **path}, receive, send)

    asyncio.run(ask())
    assert (replicas.asked, sent) == ([], [])
