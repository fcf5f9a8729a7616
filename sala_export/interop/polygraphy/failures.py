"""Errors of this package as Polygraphy tells its own: one line, and the exit code 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from polygraphy.logger import G_LOGGER

from ...errors import SalaError


@contextmanager
def told_by_polygraphy() -> Iterator[None]:
    """Raises: PolygraphyException, whose line is logged, in the place of a SalaError."""
    try:
        yield
    except SalaError as error:
        G_LOGGER.critical(str(error))
