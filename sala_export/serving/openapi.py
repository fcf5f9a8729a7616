"""The server's description of itself, by OpenAPI."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.responses import Response

from .settings import Settings


class ErrorFields(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An answer that is no success."""

    error: ErrorFields


_REASONS = {
    400: "The request is wrong. `param` names the parameter.",
    401: "There is no valid API key.",
    403: "The server is not called by the name that the request has.",
    404: "There is no such model or path.",
    405: "The path takes another method.",
    408: "The request came too slowly.",
    413: "The body is too large.",
    415: "The body is no JSON.",
    429: "Too many requests wait. Retry-After says when to try again.",
    500: "A fault of the server.",
    503: "There is no memory, or the server is ending.",
}


def error_responses(body: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What FastAPI is told of answers that are no success. Args: body: their form."""
    return {status: {"model": body, "description": reason} for status, reason in _REASONS.items()}


ERROR_RESPONSES = error_responses(ErrorBody)


def describe(app: FastAPI, settings: Settings) -> None:
    """Serve the description of an application at `/openapi.json`."""
    made: dict[str, Any] = {}

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        if not made:
            made.update(_description(app, settings))
        return JSONResponse(made)


def _description(app: FastAPI, settings: Settings) -> dict[str, Any]:
    description = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for operations in description["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)  # faults of the body are told with 400
    schemas = description["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    for schema in schemas.values():
        for name, field in schema.get("properties", {}).items():
            if name == "model":
                field["enum"] = [*settings.model_names, *([None] if "anyOf" in field else [])]
    if settings.keys:
        description["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        description["security"] = [{"key": []}]
    return description
