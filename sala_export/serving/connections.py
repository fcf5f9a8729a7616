"""Connections of clients, which may not be too many, and none of which may do nothing for long."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from .errors import ApiError
from .settings import Settings

MOST_HEADER_BYTES = 1 << 16
LEAST_BYTES = 1 << 16
"""Bytes of an answer that a client has to take within the time that it may be silent."""
_LOOKS = 4
"""How often within that time a connection is looked at."""


class ServerConfig(uvicorn.Config):
    """A configuration that `Connection` finds its limits in."""

    def __init__(self, app: Any, *, settings: Settings, **options: Any) -> None:
        super().__init__(app, **options)
        self.settings = settings


class Connection(HttpToolsProtocol):
    """One connection, on which requests come one after the other.

    It is ended when a header is too long or does not come in time, and when an answer is not taken. The guard sees to
    bodies. Requests behind one that is not answered yet are dropped: the connection ends with that answer.
    """

    def __init__(
        self,
        config: ServerConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = config.settings
        self._look_later: asyncio.TimerHandle | None = None
        self._header_since: float | None = None
        """When the client began to owe a header. None: it owes none."""
        self._header_bytes = 0
        self._unread_bytes = 0
        """Bytes since the last end of a header, or part of a body."""
        self._is_ahead = False
        """True if the client has sent a request before the last one was answered."""
        self._untaken_bytes = 0
        """Bytes of answers that the client had not taken when it last took some."""
        self._untaken_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._header_since = self._untaken_since = self.loop.time()
        self._look()
        most = self._settings.max_connections
        if len(self.connections) > most:
            what = f"{most} connections are open, as many as --max-connections allows: try again"
            self._refuse(ApiError(503, what, kind="server_error", code="busy", retry_after=1))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._look_later is not None:
            self._look_later.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_ahead or self.transport.is_closing():
            return
        if self._header_since is None and self._is_idle:
            self._header_since = self.loop.time()
        self._unread_bytes += len(data)
        super().data_received(data)
        if self._unread_bytes > MOST_HEADER_BYTES and not self.transport.is_closing():
            self._refuse_header()

    def send_400_response(self, msg: str) -> None:
        if self._header_bytes > MOST_HEADER_BYTES:
            self._refuse_header()
        else:
            self._refuse(ApiError(400, f"this is no request of HTTP/1.1: {msg}"))

    def on_message_begin(self) -> None:
        self._header_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._unread_bytes, self._header_since = 0, None
        if self._is_ahead or not self._is_idle:
            self._is_ahead = True
            self.cycle.keep_alive = False
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        if not self._is_ahead:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread_bytes = 0
        if not self._is_ahead:
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._note_taken()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note_taken()

    @property
    def _is_idle(self) -> bool:
        """True if no request waits for its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _count(self, more_bytes: int) -> None:
        """Raises: ValueError for a header that is too long, which the parser turns into an error of its own."""
        self._header_bytes += more_bytes
        if self._header_bytes > MOST_HEADER_BYTES:
            raise ValueError("the header is too long")

    def _note_taken(self) -> None:
        self._untaken_bytes, self._untaken_since = self.transport.get_write_buffer_size(), self.loop.time()

    def _look(self) -> None:
        """End the connection if the client does not do its part, or look again later."""
        max_silence, since = self._settings.max_silence, self._silent_since()
        if since is not None and self.loop.time() - since >= max_silence:
            self.transport.abort()
        else:
            self._look_later = self.loop.call_later(max_silence / _LOOKS, self._look)

    def _silent_since(self) -> float | None:
        """When the client began to owe what it still owes: to take an answer, or to send a header. None: nothing."""
        untaken = self.transport.get_write_buffer_size()
        if untaken <= max(self._untaken_bytes - LEAST_BYTES, 0):
            self._note_taken()
        if not untaken:
            return self._header_since
        # While parts of an answer are still made, a few bytes may well lie there.
        is_owed = self._is_idle or self.transport.is_closing() or self.flow.write_paused
        return self._untaken_since if is_owed else None

    def _refuse_header(self) -> None:
        self._refuse(ApiError(431, f"the header has more than {MOST_HEADER_BYTES} bytes: send a shorter one"))

    def _refuse(self, error: ApiError) -> None:
        """Answer what has come so far by an error, and end the connection."""
        body = json.dumps(error.body()).encode()
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
        header = "".join(f"{name}: {value}\r\n" for name, value in {**fields, **(error.headers or {})}.items())
        if self._is_idle or not self.cycle.response_started:
            self.transport.write(STATUS_LINE[error.status_code] + header.encode() + b"\r\n" + body)
        self.transport.close()
