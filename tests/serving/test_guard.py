"""What a request has to pass before an endpoint sees it, and faults of bodies that no official client can send."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import httpx2
import pytest
from pydantic import BaseModel, ValidationError
from support.passkey_text import passkey_text_bundle
from support.server import MODEL, RunningServer, running_server

from sala_export.serving.log import log_request
from sala_export.serving.openai.chat import ChatRequest
from sala_export.serving.openai.completions import CompletionRequest
from sala_export.serving.openai.texts import DetokenizeRequest
from sala_export.serving.settings import LOOPBACK_HOSTS, Keys, Settings

KEY = "a-key-of-a-client-0123456789"
MOST = 10_000
CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "k1"}], "max_tokens": 1}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    settings = Settings(
        model_names=(MODEL,),
        keys=Keys([KEY]),
        hosts=LOOPBACK_HOSTS,
        max_body_bytes=MOST,
        max_silence=0.5,
        cors_origins=("https://page.example",),
    )
    with running_server(passkey_text_bundle(), settings) as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/version", "/openapi.json", "/no-such-path"])
@pytest.mark.parametrize("header", [None, "Bearer", "Bearer wrong-key-of-a-client-00", f"Basic {KEY}", KEY])
def test_all_but_health_needs_a_key(server: RunningServer, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    answer = httpx2.get(server.url + path, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx2.get(server.url + "/health").json() == {"status": "ok"}


@pytest.mark.parametrize("header", [{"Authorization": f"bearer {KEY}"}, {"x-api-key": KEY}])
def test_key_of_either_header_is_taken(server: RunningServer, header: dict[str, str]) -> None:
    assert httpx2.get(server.url + "/v1/models", headers=header).status_code == 200


def test_page_that_has_made_its_name_this_machine_is_refused(client: httpx2.Client) -> None:
    answer = client.get("/v1/models", headers={"Host": "rebound.example:8000"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_host")
    assert client.get("/v1/models", headers={"Host": "LOCALHOST:1"}).status_code == 200


def test_page_of_a_stranger_gets_no_permission(server: RunningServer, client: httpx2.Client) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    stranger = httpx2.options(server.url + CHAT, headers={"Origin": "https://stranger.example", **asks})
    assert "access-control-allow-origin" not in stranger.headers
    known = httpx2.options(server.url + CHAT, headers={"Origin": "https://page.example", **asks})  # as browsers, no key
    assert known.headers["access-control-allow-origin"] == "https://page.example"
    asked = {**asks, "Access-Control-Request-Headers": "authorization,x-stainless-lang"}
    official = httpx2.options(server.url + CHAT, headers={"Origin": "https://page.example", **asked})
    assert (official.status_code, "x-stainless-lang" in official.headers["access-control-allow-headers"]) == (200, True)
    answer = client.get("/v1/models", headers={"Origin": "https://page.example"})
    assert answer.headers["access-control-expose-headers"] == "Retry-After"
    # What a page may send without asking first is no JSON.
    plain = client.post(CHAT, content=json.dumps(BODY), headers={"Content-Type": "text/plain"})
    assert (plain.status_code, plain.json()["error"]["code"]) == (415, "wrong_content_type")


def test_body_that_is_too_large_is_refused_also_if_it_hides_its_size(client: httpx2.Client) -> None:
    body = json.dumps({**BODY, "user": "x" * MOST}).encode()
    for content in (body, iter([body[:MOST], body[MOST:]])):
        answer = client.post(CHAT, content=content, headers=JSON)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the body is empty"),
        (b"{", "the body is no JSON"),
        (b"\xff\xfe", "the body is no JSON"),
        (b"[" * 5000, "nested deeper than 100"),
        (b"[" * 102 + b"]" * 102, "nested deeper than 100"),
        (b"[" * 101 + b"]" * 101, "Input should be a valid dictionary or object"),
        (b"[]", "Input should be a valid dictionary or object"),
        (b'{"model": "model", "messages": [{"role": "user", "content": "\\ud800"}]}', "half a surrogate pair"),
        (
            b'{"model": "\\ud800", "messages": [{"role": "user", "content": "k1"}]}',
            "model: Input should be a valid string",
        ),
        (b'{"model": "model", "tools": [{"type": "function", "function": {"parameters": {"x": NaN}}}]}', "number NaN"),
        (b'{"model": "model", "x": [-Infinity]}', "number -Infinity"),
        (b'{"model": "model", "x": ' + b"1" * 400 + b".0}", "too large"),
        (b'{"model": "model", "\\ud800": 1}', "Input should be a valid string"),
    ],
)
def test_body_that_is_no_request_is_a_fault_of_the_client(client: httpx2.Client, content: bytes, words: str) -> None:
    answer = client.post(CHAT, content=content, headers=JSON)
    assert answer.status_code == 400
    assert re.search(words, answer.json()["error"]["message"])


def test_body_that_does_not_come_ends_the_connection(server: RunningServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 9\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (CompletionRequest, {"prompt": [-1] * 1000}),
        (CompletionRequest, {"prompt": [[3, "x"] * 1000] * 100}),
        (CompletionRequest, {"prompt": [3, 3.5, None]}),
        (CompletionRequest, {"prompt": [[3], []]}),
        (CompletionRequest, {"prompt": [3, True]}),
        (CompletionRequest, {"prompt": ["k1"] * 129}),
        (CompletionRequest, {"prompt": {}}),
        (CompletionRequest, {"prompt": "k1", "stop_token_ids": [-1] * 1000}),
        (CompletionRequest, {"prompt": "k1", "logit_bias": dict.fromkeys(map(str, range(5000)), "x")}),
        (CompletionRequest, {"prompt": "k1", **dict.fromkeys(map(str, range(1000)))}),
        (ChatRequest, {"messages": [{"role": "none"}] * 1000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [{}] * 1000}]}),
        (DetokenizeRequest, {"tokens": [1 << 31] * 1000}),
    ],
)
def test_faults_are_not_collected(kind: type[BaseModel], wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as raised:
        kind.model_validate({"model": MODEL, **wrong})
    assert raised.value.error_count() <= 64


def test_lists_of_ids_are_taken_as_they_are() -> None:
    for prompt in ([0, 2**31 - 1], [[1], "k1", [2, 3]], "k1"):
        assert CompletionRequest.model_validate({"model": MODEL, "prompt": prompt}).prompt == prompt


def test_fault_of_the_server_is_counted_and_logged(
    server: RunningServer,
    client: httpx2.Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(server.service, "require_model", lambda name: 1 // 0)
    with caplog.at_level("INFO", "sala_export.serving.log"):
        answer = client.get(f"/v1/models/{MODEL}", headers={"Origin": "https://page.example"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
        assert answer.headers["access-control-allow-origin"] == "https://page.example"
        text = client.get("/metrics").text
    assert 'sala_requests_total{endpoint="/v1/models/{name:path}",status="500"} 1.0' in text
    assert re.search(rf"127\.0\.0\.1 GET /v1/models/{MODEL} 500 ", caplog.text)


def test_addresses_are_logged_in_one_short_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "sala_export.serving.log"):
        log_request({"client": ("1\n\x9b" + "2" * 500, 1), "method": "GET", "path": "/"}, 200, 1)
    assert caplog.messages == [f"1\\n\\x9b{'2' * 97} GET / 200 1.000 s"]


def test_errors_of_paths_and_methods_have_the_form_of_all_errors(client: httpx2.Client) -> None:
    for answer, code in ((client.get("/v1/nothing"), "not_found"), (client.get(CHAT), "method_not_allowed")):
        assert answer.json()["error"]["code"] == code


def test_requests_are_counted_by_endpoints_and_not_by_what_clients_make_up(client: httpx2.Client) -> None:
    client.get("/made/up/by/a/client")
    client.get(f"/v1/models/{MODEL}")
    text = client.get("/metrics").text
    assert 'sala_requests_total{endpoint="other",status="404"}' in text
    assert 'sala_requests_total{endpoint="/v1/models/{name:path}",status="200"}' in text
    assert "made/up" not in text


def test_tokens_and_texts(client: httpx2.Client) -> None:
    counted = client.post("/tokenize", json={"prompt": "k1 v2 w40", "return_token_strs": True}).json()
    assert counted == {"count": 3, "max_model_len": 1048576, "tokens": [3, 20, 40], "token_strs": ["k1", "v2", "w40"]}
    chat = client.post("/tokenize", json={"messages": [{"role": "user", "content": "k1 v2"}]}).json()
    assert chat["tokens"] == [3, 20]
    assert client.post("/detokenize", json={"tokens": [3, 20, 40]}).json() == {"prompt": "k1 v2 w40"}
    refused = client.post("/detokenize", json={"tokens": [128]})
    assert (refused.status_code, "token 128 is outside" in refused.json()["error"]["message"]) == (400, True)
