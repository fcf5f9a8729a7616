"""What every request has to pass before an endpoint sees it: pure ASGI, so that streams stay streams."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
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
from .settings import Settings

OPEN_PATHS = frozenset({"/health"})
"""What needs no key."""
_JSON = "application/json"


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
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._open += 1
        try:
            self._check(scope)
            await self._app(scope, _limited(receive, self._settings), noting)
        except ApiError as error:
            if status == 0:
                body = error_body(error, scope["path"])
                await JSONResponse(body, error.status_code, error.headers)(scope, receive, noting)
        finally:
            self._open -= 1
            endpoint = self._endpoint(scope)
            self._metrics.request(endpoint, status)
            log_request(scope, status, time.monotonic() - start)

    def _check(self, scope: Scope) -> None:
        """Raises: ApiError for what is refused before its body is read."""
        headers = Headers(scope=scope)
        settings = self._settings
        path = scope["path"]
        if settings.hosts and _host(headers.get("host", "")) not in settings.hosts:
            raise ApiError(
                403,
                f"this server is not called {headers.get('host', '')!r}: give that name to --allow-host if it is yours",
                code="wrong_host",
            )
        if path in OPEN_PATHS:
            return
        if settings.keys and not is_page(path) and not settings.keys.have(_key(headers)):
            raise ApiError(
                401,
                "no valid API key: send it in the header Authorization, as `Bearer KEY`",
                kind="authentication_error",
                code="invalid_api_key",
            )
        if self._is_draining():
            raise ApiError(503, "the server is ending", kind="server_error", code="draining", retry_after=10)
        if self._open > settings.max_connections:
            raise ApiError(
                503,
                f"{self._open - 1} requests are open, as many as --max-connections allows: try again",
                kind="server_error",
                code="busy",
                retry_after=1,
            )
        if scope["method"] == "POST":
            _check_body(headers, settings.max_body_bytes)

    def _endpoint(self, scope: Scope) -> str:
        """The path of the endpoint that serves a request. `other` for one that there is not."""
        for route in self._routes.routes:
            if route.matches(scope)[0] is Match.FULL:
                return str(getattr(route, "path", "other"))
        return "other"


def _check_body(headers: Headers, most: int) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON:
        raise ApiError(415, f"the body is of type {kind or 'none'!r}: send {_JSON}", code="wrong_content_type")
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


def _limited(receive: Receive, settings: Settings) -> Receive:
    """What gives the parts of a body, and refuses one that is too large, or that stays out for too long."""
    size, has_ended = 0, False

    async def limited() -> Message:
        nonlocal size, has_ended
        if has_ended:
            return await receive()
        try:
            async with asyncio.timeout(settings.max_silence):
                message = await receive()
        except TimeoutError:
            raise ApiError(
                408, f"the next part of the request did not come within {settings.max_silence:g} s", code="timeout"
            ) from None
        size += len(message.get("body", b""))
        has_ended = not message.get("more_body", False)
        if size > settings.max_body_bytes:
            raise too_large(settings.max_body_bytes)
        return message

    return limited


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
