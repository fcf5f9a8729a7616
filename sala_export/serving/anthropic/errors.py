"""Errors in the form of Anthropic's protocol."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from ..errors import ApiError

PATH = "/v1/messages"
COUNT_PATH = f"{PATH}/count_tokens"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


class MessagesErrorFields(BaseModel):
    type: str
    message: str


class MessagesErrorBody(BaseModel):
    """An answer of Anthropic's protocol that is no success."""

    type: Literal["error"]
    error: MessagesErrorFields


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    """The JSON that a client of a path gets: in Anthropic's form if the path is Anthropic's, else in OpenAI's."""
    if path not in (PATH, COUNT_PATH):
        return error.body()
    kind = _TYPES.get(error.status_code, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}
