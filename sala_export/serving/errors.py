"""Errors as the server answers them: a status of HTTP, and a body in OpenAI's form."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from starlette.exceptions import HTTPException

from ..errors import BundleError, InputError, SalaError, StateError, printable, shortened

logger = logging.getLogger(__name__)

_FOLDERS = re.compile(r"(?<![^\s'\"(])/(?:[^\s/:'\"]+/)+(?=[^\s/])")

INVALID_REQUEST = "invalid_request_error"
BUSY_SECONDS = 5
"""What `Retry-After` says when too many requests wait."""


def most_exact(faults: Sequence[Any]) -> tuple[Any, list[str]]:
    """Choose the fault that lies deepest among those that pydantic finds. Returns it, and the path to it."""
    first = max(faults, key=lambda each: len(each["loc"]))
    # Of a field that may be a list or something else, pydantic's path also has the type.
    return first, [part for part in map(str, first["loc"]) if not part.startswith("list[")]


class ApiError(HTTPException):
    """An answer that is no success. It comes through the web framework from wherever it is raised."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        """Args: kind: `type` of the body; retry_after: seconds after which the client may try again."""
        self.message = printable(shortened(message))
        headers = None if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(status, self.message, headers)
        self.kind = kind
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON that the client gets."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def unsupported(param: str, what: str) -> ApiError:
    """The answer to a parameter that this server knows and does not support. Args: what: the reason, a sentence."""
    return ApiError(400, f"{param} is not supported: {what}", param=param, code="unsupported_parameter")


def invalid(param: str, message: str) -> ApiError:
    """The answer to a wrong value of a parameter."""
    return ApiError(400, message, param=param, code="invalid_value")


def of_sala(error: SalaError) -> ApiError:
    """The answer to an error of the runtime."""
    if error.code == "Busy":
        return ApiError(429, str(error), kind="rate_limit_error", code="busy", retry_after=BUSY_SECONDS)
    if error.code == "OutOfMemory":
        return ApiError(503, str(error), kind="server_error", code="out_of_memory", retry_after=BUSY_SECONDS)
    if error.code == "ContextExceeded":
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, StateError):
        logger.warning("the state store fails: %s", error)
        what = "the state store of this server fails: its log tells more"
        return ApiError(503, what, kind="server_error", code="store_failed")
    if isinstance(error, BundleError):
        logger.error("the model is lost, load it again: %s", error)
        return ApiError(500, _without_folders(str(error)), kind="server_error", code=error.code or None)
    if isinstance(error, InputError):
        return ApiError(400, _without_folders(str(error)))
    return ApiError(500, _without_folders(str(error)), kind="server_error", code=error.code or None)


def _without_folders(message: str) -> str:
    """A message whose paths are names of files: where they lie on the server is nobody's business."""
    return _FOLDERS.sub("", message)
