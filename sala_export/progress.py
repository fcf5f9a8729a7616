"""How long work reports that it moves on."""

from __future__ import annotations

from typing import Protocol


class ProgressCallback(Protocol):
    """Called from the working thread, often enough for a display, never in a hot loop."""

    def __call__(self, phase: str, done: int, total: int, unit: str = "steps") -> None:
        """`done` of `total` units (`steps`, or `bytes`) of the named phase are finished; phases come one by one."""


def silent(phase: str, done: int, total: int, unit: str = "steps") -> None:
    """The progress of callers that show none."""
