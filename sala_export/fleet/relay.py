"""The front of a fleet: it finds the replica of a conversation, and asks another if that one dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse, Response
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..serving.anthropic.errors import error_body
from ..serving.app import with_origins
from ..serving.errors import BUSY_SECONDS, ApiError
from ..serving.guard import TEXT_PATH, Guard, too_large
from ..serving.metrics import Metrics
from ..serving.settings import Settings
from ..serving.stream import ClientLeftError, event, unless_client_leaves
from .affinity import context_key, conversation_key

_SENT_ON = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client")
TRIES_HEADER = b"x-sala-tries"
"""Replicas that were asked for an answer, the one that gave it included."""
_HEALTH_SECONDS = 5.0
_LARGE_BYTES = 1 << 16
"""Bodies from here on are looked at in a thread."""


class ReplicaLostError(Exception):
    """The replica that was answering has died, or cannot be reached."""


class NoRoomError(Exception):
    """As many requests wait as may."""


class Ask(Protocol):
    """Passes a request on to a replica, and yields the ASGI messages of its answer."""

    def __call__(self, scope: dict[str, Any], body: bytes, key: str, /) -> AsyncIterator[Message]:
        """Args: key: requests of one key go to one replica while it lives. Empty: any replica will do.

        Raises: ReplicaLostError and NoRoomError.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """The replicas, as a front sees them."""

    ask: Ask
    metrics: Callable[[], Awaitable[bytes]]
    """Counts of all replicas, as Prometheus reads them."""
    is_well: Callable[[], Awaitable[bool]]
    """Tells whether a replica runs. It may have no room."""


def front_app(fleet: Fleet, settings: Settings, *, tries: int) -> ASGIApp:
    """Make the application that clients talk to.

    It refuses what a server refuses before it reads a body: wrong keys and names, and bodies that are too large.

    Args: tries: replicas that may die of one request.
    """
    routes = Router(default=Relay(fleet, max_body_bytes=settings.max_body_bytes, tries=tries))
    guarded = Guard(routes, settings=settings, metrics=Metrics(), is_draining=lambda: False, routes=routes)
    return with_origins(guarded, settings)


class Relay:
    """Passes requests on, each whole: a replica may die, and then another gets the same request."""

    def __init__(self, fleet: Fleet, *, max_body_bytes: int, tries: int) -> None:
        self._fleet = fleet
        self._max_body_bytes = max_body_bytes
        self._tries = tries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request. Raises: ApiError for what is refused before an answer has begun."""
        with suppress(ClientLeftError):
            if scope["path"] == "/metrics":
                content_type = "text/plain; version=0.0.4; charset=utf-8"
                await Response(await self._fleet.metrics(), media_type=content_type)(scope, receive, send)
            elif scope["path"] == "/health":
                await _require_well(self._fleet)
                await JSONResponse({"status": "ok"})(scope, receive, send)
            else:
                await self._relay(scope, receive, send)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._body(receive)
        is_small = len(body) < _LARGE_BYTES
        key = _key(scope, body) if is_small else await asyncio.to_thread(_key, scope, body)
        sent_on = {name: scope[name] for name in _SENT_ON if name in scope}
        await unless_client_leaves(self._pass_on(sent_on, body, key, send), receive)

    async def _body(self, receive: Receive) -> bytes:
        parts, size, has_more = [], 0, True
        while has_more:
            message = await receive()
            if message["type"] == "http.disconnect":  # what came is not the whole body
                raise ClientLeftError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                raise too_large(self._max_body_bytes)
            has_more = message.get("more_body", False)
        return b"".join(parts)

    async def _pass_on(self, scope: dict[str, Any], body: bytes, key: str, send: Send) -> None:
        for tries in range(1, self._tries + 1):
            answer = _Answer(send, scope["path"], tries)
            try:
                async for message in self._fleet.ask(scope, body, key):
                    await answer.send(message)
                return
            except NoRoomError:
                raise ApiError(
                    429,
                    "as many requests wait as the fleet takes: try again when some have ended",
                    kind="rate_limit_error",
                    code="busy",
                    retry_after=BUSY_SECONDS,
                ) from None
            except ReplicaLostError:
                if answer.has_begun:
                    await answer.break_off()
                    return
        raise ApiError(
            503,
            f"{self._tries} replicas were lost while they answered this request: send it again",
            kind="server_error",
            code="replica_lost",
            retry_after=BUSY_SECONDS,
        )


class _Answer:
    """An answer on its way to the client. Its beginning waits for its first part: until then it can come anew."""

    def __init__(self, send: Send, path: str, tries: int) -> None:
        self._send = send
        self._path = path
        self._tries = tries
        self._start: Message | None = None
        self._is_stream = False
        self.has_begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message["headers"], (TRIES_HEADER, str(self._tries).encode())]
            self._start = {**message, "headers": headers}
            self._is_stream = Headers(raw=headers).get("content-type", "").startswith("text/event-stream")
            return
        if not self.has_begun:
            assert self._start is not None
            self.has_begun = True
            await self._send(self._start)
        await self._send(message)

    async def break_off(self) -> None:
        """End an answer of which the client has a part: a stream says so. Raises: ReplicaLostError for any other."""
        if not self._is_stream:
            raise ReplicaLostError
        error = ApiError(
            503,
            "the replica was lost while it answered: send the request again, and what was read before is kept",
            kind="server_error",
            code="replica_lost",
        )
        told = error_body(error, self._path)
        data = event(told, name="error" if told.get("type") == "error" else None)
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


def _key(scope: Scope, body: bytes) -> str:
    """The key of a request. One that reads a named context belongs to those that ask about it."""
    path = scope["path"]
    if path == TEXT_PATH and (name := QueryParams(scope["query_string"]).get("name")):
        return context_key(name)
    if path.startswith(f"{TEXT_PATH}/"):
        return context_key(path.removeprefix(f"{TEXT_PATH}/"))
    return conversation_key(Headers(raw=scope["headers"]), body)


async def _require_well(fleet: Fleet) -> None:
    """Raises: ApiError if no replica runs. A fleet with no room for requests is well."""
    is_well = False
    with suppress(TimeoutError):
        async with asyncio.timeout(_HEALTH_SECONDS):
            is_well = await fleet.is_well()
    if not is_well:
        raise ApiError(503, "no replica runs", kind="server_error", code="no_replica", retry_after=BUSY_SECONDS)
