"""Values of JSON that clients send: all numbers are finite, and nothing is nested so deep that it ends a recursion."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from .errors import ApiError

MOST_LEVELS = 100
"""How deep lists and objects may stand in one another."""
_LARGE_BYTES = 1 << 16


def json_value(text: str | bytes) -> Any:
    """Parse what a client sends.

    Raises: json.JSONDecodeError for what is no JSON; ApiError for text that is no Unicode, for NaN and infinite
        numbers, and for what is nested deeper than 100 levels.
    """
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_refuse_constant)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError(400, f"the body is no JSON: {error}") from None
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        level = [
            child
            for each in level
            if isinstance(each, (dict, list))
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, (dict, list))
        ]
        if not level:
            return value
    raise _too_deep()


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ApiError(400, f"the body has the number {digits}, which is too large: send a smaller one")
    return number


def _refuse_constant(name: str) -> float:
    raise ApiError(400, f"the body has the number {name}, which JSON does not have: send a finite number")


def _too_deep() -> ApiError:
    return ApiError(400, f"the body is nested deeper than {MOST_LEVELS} levels: send a flatter one")


class JsonRoute(APIRoute):
    """An endpoint that takes its body by `json_value`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_request(request: Request) -> Response:
            return await answer(_JsonRequest(request.scope, request.receive))

        return answer_request


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        return json_value(body) if len(body) < _LARGE_BYTES else await asyncio.to_thread(json_value, body)
