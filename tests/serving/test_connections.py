"""Connections that are too many, that do nothing, or that do not keep to the form."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack, suppress

import httpx2
import pytest
from support.passkey_text import passkey_text_bundle
from support.server import MODEL, RunningServer, running_server

import sala_export
from sala_export.errors import RequestError
from sala_export.serving.connections import MOST_HEADER_BYTES
from sala_export.serving.run import reserve, serve
from sala_export.serving.settings import Settings
from sala_export.serving.stream import EventStream

SILENCE = 0.5
MOST = 6
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
PATIENCE = 20
"""Seconds after which a test gives up."""


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    settings = Settings(model_names=(MODEL,), max_silence=SILENCE, max_connections=MOST)
    with running_server(passkey_text_bundle(), settings) as running:
        yield running


@pytest.fixture
def connect(server: RunningServer) -> Iterator[Callable[[], socket.socket]]:
    host, port = server.url.removeprefix("http://").split(":")
    with ExitStack() as stack:

        def connected() -> socket.socket:
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
            client.settimeout(PATIENCE)
            client.connect((host, int(port)))
            return client

        yield connected


def rest(client: socket.socket) -> bytes:
    """What comes until the server ends the connection. Raises: TimeoutError if it does not."""
    data = b""
    with suppress(ConnectionResetError):
        while part := client.recv(1 << 20):
            data += part
    return data


def drip(client: socket.socket) -> bytes:
    """Send a byte ten times a second until the server has enough. Returns: what it answers."""
    client.settimeout(0.1)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(TimeoutError):
            return client.recv(100)
        with suppress(ConnectionResetError, BrokenPipeError):
            client.sendall(b" ")
    raise TimeoutError("the server takes one byte after the other")


@pytest.mark.parametrize("begin", [b"", HEALTH, HEALTH + b"X: "])
def test_header_that_does_not_come_ends_the_connection(connect: Callable[[], socket.socket], begin: bytes) -> None:
    client = connect()
    client.sendall(begin)
    assert rest(client) == b""


def test_header_that_comes_byte_by_byte_ends_the_connection(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    client.sendall(HEALTH + b"X: ")
    with suppress(ConnectionResetError):
        assert drip(client) == b""


def test_body_that_comes_byte_by_byte_is_refused(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    header = (
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n"
    )
    client.sendall(header)
    assert drip(client).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_header_that_is_too_long_is_refused(connect: Callable[[], socket.socket], end: bytes) -> None:
    fits, client = connect(), connect()
    long = b"X: " + b"x" * (MOST_HEADER_BYTES - 200)
    fits.sendall(HEALTH + long + b"\r\nConnection: close\r\n\r\n")
    assert rest(fits).startswith(b"HTTP/1.1 200")
    client.sendall(HEALTH + long + b"x" * 200 + end)
    assert rest(client).startswith(b"HTTP/1.1 431")


def test_connections_that_are_too_many_are_refused(server: RunningServer, connect: Callable[[], socket.socket]) -> None:
    clients = [connect() for _ in range(MOST)]
    answer = rest(connect())
    assert answer.startswith(b"HTTP/1.1 503")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "busy"
    for client in clients:
        client.close()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and (status := httpx2.get(f"{server.url}/health").status_code) != 200:
        time.sleep(0.05)
    assert status == 200


@pytest.mark.parametrize("is_taken", [True, False])
def test_answer_is_left_only_if_nobody_takes_it(connect: Callable[[], socket.socket], is_taken: bool) -> None:
    body = json.dumps({"prompt": "k1 " * 1_000_000, "return_token_strs": True}).encode()
    client = connect()
    header = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    client.sendall(f"{header}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    first = client.recv(1000)
    length = int(re.search(rb"content-length: (\d+)", first)[1])  # type: ignore[index]
    if is_taken:
        taken = len(first)
        while part := client.recv(1 << 16):
            taken += len(part)
            time.sleep(0.01)  # the whole takes longer than a client may be silent
        assert taken > length
    else:
        time.sleep(4 * SILENCE)
        assert len(rest(client)) < length


def test_request_ahead_of_an_answer_ends_the_connection(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    client.sendall((HEALTH + b"\r\n") * 3)
    assert rest(client).count(b"HTTP/1.1 200") == 1


def test_client_with_a_request_ahead_can_leave(server: RunningServer, connect: Callable[[], socket.socket]) -> None:
    body = json.dumps({"model": MODEL, "prompt": "k1", "max_tokens": 100_000, "ignore_eos": True}).encode()
    header = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    client = connect()
    client.sendall(f"{header}Content-Length: {len(body)}\r\n\r\n".encode() + body + HEALTH + b"\r\n")
    time.sleep(SILENCE)
    client.close()
    end, left = time.monotonic() + PATIENCE, 'sala_requests_total{endpoint="/v1/completions",status="499"} 1.0'
    while time.monotonic() < end and left not in httpx2.get(f"{server.url}/metrics").text:
        time.sleep(0.1)
    assert left in httpx2.get(f"{server.url}/metrics").text


def test_body_that_nobody_reads_ends_the_connection(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    client.sendall(HEALTH + b"Content-Length: 100000\r\n\r\n{")
    assert b"connection: close" in rest(client)


def test_no_request_of_http_is_told_so(connect: Callable[[], socket.socket]) -> None:
    client = connect()
    client.sendall(b"\x16\x03\x01\x02\x00\x01\r\n\r\n")
    assert b"this is no request of HTTP/1.1" in rest(client)


def test_ping_that_nobody_takes_ends_the_stream() -> None:
    is_closed = False

    async def events() -> AsyncGenerator[bytes]:
        nonlocal is_closed
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            is_closed = True

    async def send(message: object) -> None:
        if message["type"] == "http.response.body":  # type: ignore[index]
            await asyncio.Event().wait()

    async def receive() -> dict[str, object]:
        await asyncio.Event().wait()
        return {}

    async def stream() -> None:
        async with asyncio.timeout(PATIENCE):
            await EventStream(events(), ping_seconds=0.01, max_silence=0.1)({}, receive, send)

    asyncio.run(stream())
    assert is_closed


def test_address_is_taken_by_one_server() -> None:
    with reserve("127.0.0.1", 0) as listener, pytest.raises(RequestError, match="in use: choose another address"):
        reserve("127.0.0.1", listener.getsockname()[1])


def test_address_that_was_lost_is_told() -> None:
    with socket.socket() as bound, socket.socket() as other:
        for each in (bound, other):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", 0))
        other.bind(bound.getsockname())
        other.listen()
        model = sala_export.load(passkey_text_bundle(), threads=1)
        settings = Settings(model_names=(MODEL,))
        begun = serve(model, settings, bound, store=None, drain_seconds=0, on_ready=lambda _: None)
        with pytest.raises(RequestError, match="the server cannot listen: Address already in use"):
            asyncio.run(begun)


def test_command_serves_the_address_that_it_prints_and_shows_requests() -> None:
    command = [sys.executable, "-c", "from sala_export.cli.start import main; main()", "serve"]
    options = [str(passkey_text_bundle()), "--host", "127.0.0.2", "--port", "0", "--tool-parser", "hermes"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            url = next(found[1] for line in process.stderr if (found := re.search(r"at (http://\S+)", line)))
            assert httpx2.get(f"{url}/version", headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 200
            assert re.fullmatch(r"info: 127\.0\.0\.\d GET /version 200 [\d.]+ s\n", process.stderr.readline())
        finally:
            process.terminate()
    assert process.returncode == 0
