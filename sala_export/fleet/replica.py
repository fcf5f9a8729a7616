"""One process of a fleet: the model, and the server's application on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any

from starlette.types import ASGIApp, Message

from ..serving.app import create_app
from ..serving.log import log_each_request
from ..serving.service import Service
from .options import FleetOptions
from .service import open_service

MOST_FAULTS = 3
"""Answers with status 500, one behind the other, after which a replica counts as broken."""
_PARTS_AHEAD = 64
"""Parts of an answer that may wait for the front."""


class Replica:
    """Answers requests as the server would, without listening at an address."""

    def __init__(self, service: Service, exits: AsyncExitStack) -> None:
        """Args: exits: closed when the replica ends. `open_replica` makes both."""
        self._service = service
        self._exits = exits
        self._app: ASGIApp = create_app(service)
        self._faults = 0

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[Message]:
        """Answer a request. Yields the ASGI messages of the answer.

        If it is cancelled, the client has left. Args: scope: of ASGI; body: all of it.
        """
        parts: asyncio.Queue[Message] = asyncio.Queue(_PARTS_AHEAD)
        has_left = asyncio.Event()
        requests = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            if (request := next(requests, None)) is not None:
                return request
            await has_left.wait()
            return {"type": "http.disconnect"}

        working = asyncio.ensure_future(self._app(dict(scope), receive, parts.put))
        try:
            has_more = True
            while has_more and (message := await _next(parts, working)) is not None:
                self._count(message)
                has_more = message["type"] == "http.response.start" or message.get("more_body", False)
                yield message
            await working
        finally:
            has_left.set()
            working.cancel()

    def metrics(self) -> bytes:
        """The counts of this replica, as Prometheus reads them."""
        return self._service.metrics.text()

    def check_health(self) -> None:
        """Raises: RuntimeError if this replica should be replaced."""
        if self._faults >= MOST_FAULTS:
            raise RuntimeError(f"the last {self._faults} answers were faults of this replica: its log tells more")

    async def close(self) -> None:
        """End all answers, and save their contexts."""
        await self._exits.aclose()

    def _count(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._faults = self._faults + 1 if message["status"] == 500 else 0


async def open_replica(options: FleetOptions) -> Replica:
    """Load the model and open the server on it. Raises: as `open_service`."""
    log_each_request()
    exits = AsyncExitStack()
    return Replica(await exits.enter_async_context(open_service(options)), exits)


async def _next(parts: asyncio.Queue[Message], working: asyncio.Future[None]) -> Message | None:
    """The next part of an answer. None if there is no more: `working` has ended."""
    getting = asyncio.ensure_future(parts.get())
    try:
        await asyncio.wait((getting, working), return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        return parts.get_nowait() if not parts.empty() else None
    finally:
        getting.cancel()
