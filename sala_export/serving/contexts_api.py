"""`/v1/contexts`: texts become contexts, with progress, and are listed and deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from ..errors import SalaError
from .contexts import NAME, Contexts, NamedContext, require_name
from .contexts_reading import Reading, read, receive_text
from .errors import ApiError, of_sala
from .guard import TEXT_PATH
from .openai.parameters import Refusing
from .openapi import ERROR_RESPONSES, ErrorBody
from .service import Service
from .settings import Caller
from .stream import ClientLeftError, EventStream, event, unless_client_leaves

_RESPONSES: Mapping[int | str, dict[str, Any]] = {
    **ERROR_RESPONSES,
    403: {"model": ErrorBody, "description": "The key may have no more, or the server is not called by this name."},
    404: {"model": ErrorBody, "description": "There is no such context."},
    409: {"model": ErrorBody, "description": "There is a context of this name, or it is being read."},
    413: {"model": ErrorBody, "description": "The text has more tokens than fit into a context."},
    415: {"model": ErrorBody, "description": "The body is no UTF-8 text."},
}
_STREAM = {"description": "With stream=true, the events.", "content": {"text/event-stream": {}}}
_ENDPOINT: Mapping[str, Any] = {"responses": dict(_RESPONSES), "response_model": None}
_UPLOAD: Mapping[str, Any] = {"responses": {200: _STREAM, **_RESPONSES}, "response_model": None}
_TEXT_BODY = {
    "requestBody": {
        "required": True,
        "content": {"text/plain; charset=utf-8": {"schema": {"type": "string", "minLength": 1}}},
    }
}


class ContextQuery(Refusing):
    """What is to be done with a text."""

    name: str = Field(
        description="Of the context: 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'.",
        json_schema_extra={"pattern": f"^{NAME.pattern}$"},
    )
    system: str | None = Field(default=None, description="The system message of conversations that go on from it.")
    replace: bool = Field(default=False, description="Take the place of a context of this name, when it is ready.")
    stream: bool = Field(default=False, description="Send events that tell how much has been read.")


def caller_of(request: Request) -> Caller:
    """Who has sent a request, as the guard found out."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller


def add_contexts(app: FastAPI, service: Service) -> None:
    """Add the endpoints."""
    contexts = service.contexts

    @app.post(TEXT_PATH, status_code=201, openapi_extra=_TEXT_BODY, **_UPLOAD)
    async def make_context(query: Annotated[ContextQuery, Query()], request: Request) -> Response:
        """Read a text of any size, which conversations can then go on from."""
        context, first, readings = await _begun(contexts, query, request)
        if not query.stream:
            await unless_client_leaves(_finish(readings), request.receive)
            return JSONResponse(described(contexts, context), 201)
        settings = service.settings
        return EventStream(
            _events(contexts, context, first, readings),
            ping_seconds=settings.ping_seconds,
            max_silence=settings.max_silence,
        )

    @app.get(TEXT_PATH, **_ENDPOINT)
    async def list_contexts(request: Request) -> Response:
        """The contexts of this key."""
        found = await contexts.all(caller_of(request))
        return JSONResponse({"object": "list", "data": [described(contexts, each) for each in found]})

    @app.get(TEXT_PATH + "/{name}", **_ENDPOINT)
    async def get_context(name: str, request: Request) -> Response:
        """One context."""
        return JSONResponse(described(contexts, await contexts.find(caller_of(request), name)))

    @app.delete(TEXT_PATH + "/{name}", **_ENDPOINT)
    async def delete_context(name: str, request: Request) -> Response:
        """Forget a context, also one that is being read, and free what it takes."""
        context = await contexts.delete(caller_of(request), name)
        return JSONResponse({"id": context.id, "object": "context.deleted", "name": name, "deleted": True})


def described(contexts: Contexts, context: NamedContext) -> dict[str, Any]:
    """A context as clients get it."""
    return {
        "id": context.id,
        "object": "context",
        "name": context.name,
        "created": context.created,
        "tokens": context.tokens,
        "bytes": contexts.model.state_bytes(context.tokens),
        "status": "ready" if context.is_ready else "reading",
        "processed": context.processed,
    }


async def _begun(
    contexts: Contexts, query: ContextQuery, request: Request
) -> tuple[NamedContext, Reading, AsyncGenerator[Reading]]:
    """Take the text of a context, and begin to read it.

    Returns: the context, how far it is, and how far it comes.
    Raises: ApiError or SalaError for what is wrong with it."""
    caller, system = caller_of(request), query.system or None
    require_name(query.name)
    await contexts.refresh()
    encoder = await asyncio.to_thread(contexts.prompts.document, system)
    context = contexts.reserve(caller, query.name, encoder, system, replace=query.replace)
    readings = read(contexts, context)
    try:
        try:
            await receive_text(contexts, caller, context, encoder, request.stream())
        except ClientDisconnect:
            raise ClientLeftError from None
        # What is refused has a status of its own.
        first = await unless_client_leaves(anext(readings), request.receive)
    except BaseException:
        await readings.aclose()
        await contexts.end_reading(context)
        raise
    return context, first, readings


async def _finish(readings: AsyncGenerator[Reading]) -> None:
    async with aclosing(readings):
        async for _ in readings:
            continue


async def _events(
    contexts: Contexts, context: NamedContext, first: Reading, readings: AsyncGenerator[Reading]
) -> AsyncGenerator[bytes]:
    """The events of a context that is being read, the last of which has the context, or an error."""
    try:
        async with aclosing(readings):
            yield event(_described_progress(context, first), name="context.progress")
            async for reading in readings:
                yield event(_described_progress(context, reading), name="context.progress")
        yield event(described(contexts, context), name="context.ready")
    except (ApiError, SalaError) as error:
        told = of_sala(error) if isinstance(error, SalaError) else error
        yield event(told.body(), name="error")


def _described_progress(context: NamedContext, reading: Reading) -> dict[str, Any]:
    left = reading.seconds_left
    return {
        "object": "context.progress",
        "name": context.name,
        "tokens": reading.tokens,
        "processed": reading.processed,
        "cached": reading.cached,
        "tokens_per_second": round(reading.tokens_per_second, 1),
        "seconds_left": None if left is None else round(left, 1),
    }
