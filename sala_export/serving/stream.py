"""Server-sent events, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, NoReturn, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")

_PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"


class ClientLeftError(Exception):
    """The client has closed its connection."""


def event(data: Mapping[str, Any], *, name: str | None = None) -> bytes:
    """One server-sent event. Args: name: of its type, which OpenAI's chat leaves out."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return (f"data: {text}\n\n" if name is None else f"event: {name}\ndata: {text}\n\n").encode()


class EventStream(Response):
    """An answer of server-sent events.

    It ends when the client leaves, or takes nothing for too long. The events are closed then.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], *, ping_seconds: float, max_silence: float) -> None:
        """Args: ping_seconds: after so many without an event a comment is sent."""
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._ping_seconds = ping_seconds
        self._max_silence = max_silence

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sender = _Sender(send, self._max_silence)
        stream = _unless(self._stream(sender), sender.ping_every(self._ping_seconds))
        # There is nobody to tell.
        with contextlib.suppress(ClientLeftError, TimeoutError, OSError):
            await unless_client_leaves(stream, receive)

    async def _stream(self, sender: _Sender) -> None:
        async with contextlib.aclosing(self._events) as events:
            async for data in events:
                await sender.send(data)
        await sender.send(b"", more=False)


class _Sender:
    """Sends the parts of an answer, and comments while there are none."""

    def __init__(self, send: Send, max_silence: float) -> None:
        self._send = send
        self._max_silence = max_silence
        self._is_sending = False
        self._last = time.monotonic()

    async def send(self, data: bytes, *, more: bool = True) -> None:
        """Send a part. Raises: TimeoutError if the client does not take it."""
        self._is_sending = True
        async with asyncio.timeout(self._max_silence):
            await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._last = time.monotonic()
        self._is_sending = False

    async def ping_every(self, seconds: float) -> NoReturn:
        """Raises: TimeoutError as `send`."""
        while True:
            silence = time.monotonic() - self._last
            if silence >= seconds and not self._is_sending:
                await self.send(_PING)
            await asyncio.sleep(max(seconds - silence, seconds / 10))


async def unless_client_leaves(work: Awaitable[Result], receive: Receive) -> Result:
    """Do what a client waits for. Args: receive: of a request whose body has been read.

    Raises: ClientLeftError if the client closes its connection before. The work is then cancelled, and has ended.
    """
    return await _unless(work, _left(receive))


async def _unless(work: Awaitable[Result], watch: Awaitable[NoReturn]) -> Result:
    """Do some work while a watch runs beside it, whose error ends the work."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(watch)
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else watching.result()
    finally:
        for task in (working, watching):
            task.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _left(receive: Receive) -> NoReturn:
    while (await receive())["type"] != "http.disconnect":
        continue
    raise ClientLeftError
