"""One line for each request, which says nothing of what was asked and answered."""

from __future__ import annotations

import logging

from starlette.types import Scope

from ..errors import printable

logger = logging.getLogger(__name__)

_LONGEST_PATH = 100


def log_request(scope: Scope, status: int, seconds: float) -> None:
    """Log a request that has ended. Args: status: 0 if the client left before an answer began."""
    client = scope.get("client")
    where = client[0] if client else "-"
    path = printable(scope["path"][:_LONGEST_PATH])
    logger.info("%s %s %s %s %.3f s", where, scope["method"], path, status or "left", seconds)
