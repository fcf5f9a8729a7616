"""One line for each request, which says nothing of what was asked and answered."""

from __future__ import annotations

import logging

from starlette.types import Scope

from ..errors import printable

logger = logging.getLogger(__name__)

_MOST_CHARACTERS = 100
"""Of a path, and of an address."""


def log_each_request() -> None:
    """Let the log have a line for each request also where it has warnings only."""
    logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))


def log_request(scope: Scope, status: int, seconds: float) -> None:
    """Log a request that has ended. Args: status: 0 if the client left before an answer began."""
    client = scope.get("client")
    where = printable(client[0][:_MOST_CHARACTERS]) if client else "-"
    path = printable(scope["path"][:_MOST_CHARACTERS])
    logger.info("%s %s %s %s %.3f s", where, scope["method"], path, status or "left", seconds)
