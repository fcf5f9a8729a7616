"""The endpoints, as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp

from ..errors import SalaError, printable, shortened
from ..installation import VERSION
from .anthropic.answer import MessageAnswer
from .anthropic.errors import COUNT_PATH, PATH, MessagesErrorBody, error_body
from .anthropic.requests import CountRequest, MessagesRequest
from .contexts_api import add_contexts, caller_of
from .errors import ApiError, most_exact, of_sala
from .guard import Guard
from .json_body import JsonRoute
from .openai.chat import ChatRequest, Completion
from .openai.completions import CompletionRequest, TextCompletion
from .openai.responses import ResponsesRequest
from .openai.responses_answer import ResponseAnswer
from .openai.texts import DetokenizeRequest, TokenizeRequest, described_tokenizer
from .openapi import ERROR_RESPONSES, describe, error_responses
from .page import add_page
from .service import Service
from .settings import Settings
from .stream import ClientLeftError, EventStream, event, unless_client_leaves

_ENDPOINT: Mapping[str, Any] = {"responses": ERROR_RESPONSES, "response_model": None}
_MESSAGES_ENDPOINT: Mapping[str, Any] = {"responses": error_responses(MessagesErrorBody), "response_model": None}


def create_app(service: Service) -> ASGIApp:
    """Make the application that serves a model."""
    app = FastAPI(
        title="sala-export", version=VERSION, docs_url=None, redoc_url=None, redirect_slashes=False, openapi_url=None
    )
    app.router.route_class = JsonRoute
    _add_errors(app)
    _add_models(app, service)
    _add_texts(app, service)
    _add_answers(app, service)
    add_contexts(app, service)
    _add_messages(app, service)
    add_page(app)
    describe(app, service.settings)
    # Outside of all that answers, and so of what answers for our own faults.
    guarded = Guard(
        app,
        settings=service.settings,
        metrics=service.metrics,
        is_draining=lambda: service.is_draining,
        routes=app.router,
    )
    return with_origins(guarded, service.settings)


def with_origins(guarded: ASGIApp, settings: Settings) -> ASGIApp:
    """Let pages of other origins use what a guard lets through, if there are any."""
    if not settings.cors_origins:
        return guarded
    # Outside of the guard: a browser asks without a key whether it may ask with one.
    return CORSMiddleware(
        guarded,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["*"],  # clients tell their versions in headers of their own
        expose_headers=["Retry-After"],
    )


def _add_models(app: FastAPI, service: Service) -> None:
    models = [
        {
            "id": name,
            "object": "model",
            "created": service.created,
            "owned_by": "sala-export",
            "max_model_len": service.answers.max_context,
        }
        for name in service.settings.model_names
    ]

    @app.get("/v1/models", **_ENDPOINT)
    async def list_models() -> Response:
        """The names of the model."""
        return JSONResponse({"object": "list", "data": models})

    @app.get("/v1/models/{name:path}", **_ENDPOINT)
    async def get_model(name: str) -> Response:
        """One of the names."""
        service.require_model(name)
        return JSONResponse(next(each for each in models if each["id"] == name))

    @app.get("/health", **_ENDPOINT)
    async def health() -> Response:
        """Whether the server answers requests. Needs no key."""
        if service.is_draining:
            raise ApiError(503, "the server is ending", kind="server_error", code="draining")
        return JSONResponse({"status": "ok"})

    @app.get("/version", **_ENDPOINT)
    async def version() -> Response:
        """The version of the server."""
        return JSONResponse({"version": VERSION})

    @app.get("/metrics", response_class=PlainTextResponse, **_ENDPOINT)
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_texts(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", **_ENDPOINT)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text, or of a conversation as the chat template writes it."""
        return await asyncio.to_thread(JSONResponse, await body.answer(service))

    @app.post("/detokenize", **_ENDPOINT)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        return await asyncio.to_thread(JSONResponse, await body.answer(service))

    @app.get("/tokenizer_info", **_ENDPOINT)
    async def tokenizer_info() -> Response:
        """Special tokens by name, and the chat template."""
        return JSONResponse(described_tokenizer(service))


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", **_ENDPOINT)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next message of a conversation."""
        completion = Completion(service, body, await body.prepare(service, caller_of(request)))
        return await _answered(service, request, completion.chunks if body.stream else None, completion.whole)

    @app.post("/v1/completions", **_ENDPOINT)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """The continuation of a text."""
        completion = TextCompletion(service, body, await body.prepare(service))
        return await _answered(service, request, completion.chunks if body.stream else None, completion.whole)

    @app.post("/v1/responses", **_ENDPOINT)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """The next items of a conversation."""
        answer = ResponseAnswer(service, body, await body.prepare(service))
        events = answer.events if body.stream else None
        return await _answered(service, request, events, answer.whole, failed=answer.failed)


def _add_messages(app: FastAPI, service: Service) -> None:
    @app.post(PATH, **_MESSAGES_ENDPOINT)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        """The next message of a conversation, by Anthropic's protocol."""
        answer = MessageAnswer(service, await body.prepare(service))
        events = answer.events if body.stream else None
        return await _answered(service, request, events, answer.whole, failed=answer.failed)

    @app.post(COUNT_PATH, **_MESSAGES_ENDPOINT)
    async def count_tokens(body: CountRequest) -> Response:
        """Tokens of a conversation as the chat template writes it."""
        return JSONResponse(await body.answer(service))


async def _answered(
    service: Service,
    request: Request,
    chunks: Callable[[], AsyncGenerator[bytes]] | None,
    whole: Callable[[], Awaitable[dict[str, Any]]],
    *,
    failed: Callable[[ApiError], bytes] | None = None,
) -> Response:
    """An answer in one piece, or as a stream if there are `chunks`.

    Args: failed: writes the event that ends a stream with an error. None: the event has nothing but the error.
    """
    if chunks is None:
        return JSONResponse(await unless_client_leaves(whole(), request.receive))
    events = chunks()
    try:
        # What is refused at once has a status of its own.
        first = await unless_client_leaves(anext(events), request.receive)
    except BaseException:
        await events.aclose()
        raise
    settings = service.settings
    chunks_or_error = _with_errors(first, events, failed or (lambda error: event(error.body())))
    return EventStream(chunks_or_error, ping_seconds=settings.ping_seconds, max_silence=settings.max_silence)


async def _with_errors(
    first: bytes, events: AsyncGenerator[bytes], failed: Callable[[ApiError], bytes]
) -> AsyncGenerator[bytes]:
    """A stream that ends with an error, if one comes up."""
    try:
        yield first
        async for data in events:
            yield data
    except (ApiError, SalaError) as error:
        yield failed(of_sala(error) if isinstance(error, SalaError) else error)
    finally:
        await events.aclose()


def _add_errors(app: FastAPI) -> None:
    def response(request: Request, error: ApiError) -> Response:
        return JSONResponse(error_body(error, request.url.path), error.status_code, error.headers)

    @app.exception_handler(ApiError)
    async def of_api(request: Request, error: ApiError) -> Response:
        return response(request, error)

    @app.exception_handler(SalaError)
    async def of_runtime(request: Request, error: SalaError) -> Response:
        return response(request, of_sala(error))

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        return response(request, invalid_body(error))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        what = f"{request.method} {request.url.path}: {error.detail}"
        return response(request, ApiError(error.status_code, what, code=codes.get(error.status_code)))

    @app.exception_handler(ClientLeftError)
    async def of_client(request: Request, error: ClientLeftError) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def of_us(request: Request, error: Exception) -> Response:
        what = f"a fault of this server ({type(error).__name__}): its log tells more"
        return response(request, ApiError(500, what, kind="server_error", code="internal_error"))


def invalid_body(error: RequestValidationError) -> ApiError:
    """The answer to a body that is not of the form that the endpoint takes. Of several faults, the most exact."""
    first, path = most_exact(error.errors())
    param = printable(shortened(".".join(path[1:]))) or None
    if first["type"] == "missing" and param is None:
        return ApiError(400, "the body is empty: send a JSON object")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is no parameter of this endpoint", param=param, code="unknown_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    return ApiError(400, f"{param}: {first['msg']}" if param else first["msg"], param=param, code="invalid_value")
