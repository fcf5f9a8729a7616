"""What every request has to pass before an endpoint sees it: pure ASGI, so that streams stay streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.routing import Match, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .anthropic.errors import error_body
from .errors import ApiError
from .log import log_request
from .metrics import Metrics
from .page import is_page
from .settings import Caller, Settings

OPEN_PATHS = frozenset({"/health"})
"""What needs no key and no name: a check of health says nothing."""
TEXT_PATH = "/v1/contexts"
"""Where a text of any size is sent."""
_LEAST_BYTES = 1 << 16
"""Bytes of a body that have to come within the time that a client may be silent."""
_JSON, _TEXT = "application/json", "text/plain"


class Guard:
    """Refuses what is too large, too slow, without a key, or called by a wrong name. Counts and logs the rest."""

    def __init__(
        self, app: ASGIApp, *, settings: Settings, metrics: Metrics, is_draining: Callable[[], bool], routes: Router
    ) -> None:
        """Args: routes: of the endpoints, by which requests are counted."""
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._is_draining = is_draining
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0
        most = None if scope["path"] == TEXT_PATH else self._settings.max_body_bytes
        body = _Body(receive, most, self._settings.max_silence)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status == 500 or (not body.has_ended and _has_body(scope)):
                    # The server ends the connection after a fault of ours. Nobody reads what is left of a body.
                    message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, body.receive, noting)
        except ApiError as error:
            if status == 0:
                content = error_body(error, scope["path"])
                await JSONResponse(content, error.status_code, error.headers)(scope, receive, noting)
        finally:
            endpoint = self._endpoint(scope)
            self._metrics.request(endpoint, status)
            log_request(scope, status, time.monotonic() - start)

    def _check(self, scope: Scope) -> None:
        """Raises: ApiError for what is refused before its body is read."""
        headers = Headers(scope=scope)
        settings = self._settings
        path = scope["path"]
        if path in OPEN_PATHS:
            return
        if settings.hosts and _host(headers.get("host", "")) not in settings.hosts:
            raise ApiError(
                403,
                f"this server is not called {headers.get('host', '')!r}: give that name to --allow-host if it is yours",
                code="wrong_host",
            )
        caller = settings.keys.caller(_key(headers)) if settings.keys and not is_page(path) else Caller()
        if caller is None:
            raise ApiError(
                401,
                "no valid API key: send it in the header Authorization, as `Bearer KEY`",
                kind="authentication_error",
                code="invalid_api_key",
            )
        scope.setdefault("state", {})["caller"] = caller
        if self._is_draining():
            raise ApiError(503, "the server is ending", kind="server_error", code="draining", retry_after=10)
        if scope["method"] == "POST" and path == TEXT_PATH:
            _check_text(headers, settings.cors_origins)
        elif scope["method"] == "POST":
            _check_body(headers, settings.max_body_bytes)

    def _endpoint(self, scope: Scope) -> str:
        """The path of the endpoint that serves a request. `other` for one that there is not."""
        for route in self._routes.routes:
            if route.matches(scope)[0] is Match.FULL:
                return str(getattr(route, "path", "other"))
        return "other"


def _check_text(headers: Headers, cors_origins: Sequence[str]) -> None:
    """Its size is not looked at: the text ends where it has too many tokens."""
    kind, _, parameters = headers.get("content-type", "").lower().partition(";")
    charset = parameters.partition("charset=")[2].strip(' "')
    _require_type(kind, _TEXT)
    if charset not in ("", "utf-8", "utf8"):
        raise ApiError(415, f"the text is of charset {charset!r}: send UTF-8", code="wrong_content_type")
    # Browsers send plain text to a stranger's server without asking it before, as they do for JSON.
    origin = headers.get("origin")
    is_own = origin is None or origin.partition("://")[2] == headers.get("host")
    if not is_own and not {origin, "*"} & {*cors_origins}:
        raise ApiError(
            403, f"pages of {origin!r} may not send texts: give it to --cors-origin if it is yours", code="wrong_origin"
        )


def _require_type(kind: str, wanted: str) -> None:
    if kind.strip() != wanted:
        raise ApiError(415, f"the body is of type {kind.strip() or 'none'!r}: send {wanted}", code="wrong_content_type")


def _check_body(headers: Headers, most: int) -> None:
    _require_type(headers.get("content-type", "").lower().partition(";")[0], _JSON)
    length = headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and (len(length) > 18 or int(length) > most):
        raise too_large(most)


def too_large(most: int) -> ApiError:
    """The answer to a body of more bytes than are taken."""
    return ApiError(
        413,
        f"the body has more than {most} bytes, which is what --max-body allows: shorten the prompt",
        code="too_large",
    )


class _Body:
    """Gives the parts of a body, and refuses one that is too large, or that comes too slowly.

    Only the time counts in which somebody waits for a part: a text may come as slowly as it is read.
    """

    def __init__(self, receive: Receive, most: int | None, max_silence: float) -> None:
        """Args: most: bytes of the body. None: the endpoint has a limit of its own; max_silence: seconds for a part,
        and for each 64 KiB.
        """
        self._receive = receive
        self._most = most
        self._max_silence = max_silence
        self._bytes = 0
        self._waited = 0.0
        self.has_ended = False

    async def receive(self) -> Message:
        """The next part. Raises: ApiError."""
        if self.has_ended:
            return await self._receive()
        left = self._max_silence * (1 + self._bytes / _LEAST_BYTES) - self._waited
        start = time.monotonic()
        try:
            async with asyncio.timeout(min(left, self._max_silence)):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                408,
                f"the next part of the request did not come within {self._max_silence:g} s, or 64 KiB did not",
                code="timeout",
            ) from None
        self._waited += time.monotonic() - start
        self._bytes += len(message.get("body", b""))
        self.has_ended = not message.get("more_body", False)
        if self._most is not None and self._bytes > self._most:
            raise too_large(self._most)
        return message


def _has_body(scope: Scope) -> bool:
    headers = Headers(scope=scope)
    return "transfer-encoding" in headers or headers.get("content-length", "0") != "0"


def _key(headers: Headers) -> str:
    """The key that a client sends, as OpenAI's or as Anthropic's clients do."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _host(value: str) -> str:
    """The name in a Host header, without its port."""
    with suppress(ValueError):
        end = value.rindex(":")
        if value[end + 1 :].isdecimal():
            value = value[:end]
    return value.lower()
