"""The endpoints, as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from ..errors import SalaError
from ..installation import VERSION
from .openapi import ERROR_RESPONSES, describe
from .errors import ApiError, of_sala
from .guard import Guard
from .openai.chat import ChatRequest, Completion
from .openai.completions import CompletionRequest, TextCompletion
from .openai.texts import DetokenizeRequest, TokenizeRequest
from .page import add_page
from .service import Service
from .stream import ClientLeft, EventStream, event, unless_client_leaves

_ENDPOINT: Mapping[str, Any] = {"responses": ERROR_RESPONSES, "response_model": None}


def create_app(service: Service) -> FastAPI:
    """Make the application that serves a model."""
    app = FastAPI(
        title="sala-export", version=VERSION, docs_url=None, redoc_url=None, redirect_slashes=False, openapi_url=None
    )
    _add_errors(app)
    _add_models(app, service)
    _add_texts(app, service)
    _add_answers(app, service)
    add_page(app)
    describe(app, has_keys=bool(service.settings.keys))
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "x-api-key", "anthropic-version"],
        )
    app.add_middleware(
        Guard,
        settings=service.settings,
        metrics=service.metrics,
        is_draining=lambda: service.is_draining,
        routes=app.router,
    )
    return app


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

    @app.get("/metrics", **_ENDPOINT)
    async def metrics() -> Response:
        """Counts and times, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_texts(app: FastAPI, service: Service) -> None:
    @app.post("/tokenize", **_ENDPOINT)
    async def tokenize(body: TokenizeRequest) -> Response:
        """Token ids of a text, or of a conversation as the chat template writes it."""
        return JSONResponse(await body.answer(service))

    @app.post("/detokenize", **_ENDPOINT)
    async def detokenize(body: DetokenizeRequest) -> Response:
        """The text of token ids."""
        return JSONResponse(await body.answer(service))


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", **_ENDPOINT)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """The next message of a conversation."""
        completion = Completion(service, body, await body.prepare(service))
        return await _answered(service, request, completion.chunks if body.stream else None, completion.whole)

    @app.post("/v1/completions", **_ENDPOINT)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """The continuation of a text."""
        completion = TextCompletion(service, body, await body.prepare(service))
        return await _answered(service, request, completion.chunks if body.stream else None, completion.whole)


async def _answered(
    service: Service,
    request: Request,
    chunks: Callable[[], AsyncGenerator[bytes]] | None,
    whole: Callable[[], Awaitable[dict[str, Any]]],
) -> Response:
    """An answer in one piece, or as a stream if there are `chunks`."""
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
    return EventStream(
        _with_errors(first, events), ping_seconds=settings.ping_seconds, max_silence=settings.max_silence
    )


async def _with_errors(first: bytes, events: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """A stream that ends with an error, if one comes up."""
    try:
        yield first
        async for data in events:
            yield data
    except (ApiError, SalaError) as error:
        yield event((of_sala(error) if isinstance(error, SalaError) else error).body())
    finally:
        await events.aclose()


def _add_errors(app: FastAPI) -> None:
    def response(error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status, error.headers)

    @app.exception_handler(ApiError)
    async def of_api(request: Request, error: ApiError) -> Response:
        return response(error)

    @app.exception_handler(SalaError)
    async def of_runtime(request: Request, error: SalaError) -> Response:
        return response(of_sala(error))

    @app.exception_handler(RequestValidationError)
    async def of_validation(request: Request, error: RequestValidationError) -> Response:
        return response(invalid_body(error))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        codes = {404: "not_found", 405: "method_not_allowed"}
        what = f"{request.method} {request.url.path}: {error.detail}"
        return response(ApiError(error.status_code, what, code=codes.get(error.status_code)))

    @app.exception_handler(ClientLeft)
    async def of_client(request: Request, error: ClientLeft) -> Response:
        return Response(status_code=499)

    @app.exception_handler(Exception)
    async def of_us(request: Request, error: Exception) -> Response:
        what = f"a fault of this server ({type(error).__name__}): its log tells more"
        return response(ApiError(500, what, kind="server_error", code="internal_error"))


def invalid_body(error: RequestValidationError) -> ApiError:
    """The answer to a body that is not of the form that the endpoint takes. Of several faults, the most exact."""
    first = max(error.errors(), key=lambda each: len(each["loc"]))
    path = [str(part) for part in first["loc"][1:]]
    param = ".".join(path) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"{param} is no parameter of this endpoint", param=param, code="unknown_parameter")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first['ctx']['error']} at character {first['loc'][-1]}")
    return ApiError(400, f"{param}: {first['msg']}" if param else first["msg"], param=param, code="invalid_value")
