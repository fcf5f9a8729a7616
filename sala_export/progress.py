"""Callbacks with which long work reports its progress."""

from __future__ import annotations

from typing import Protocol


class ProgressCallback(Protocol):
    """Called from the working thread, often enough for a display, never in a hot loop."""

    def __call__(self, phase: str, done: int, total: int, unit: str = "steps") -> None:
        """Report that `done` of `total` units (`steps` or `bytes`) of a phase are finished. Phases come one by one."""


def silent(phase: str, done: int, total: int, unit: str = "steps") -> None:
    """Ignore progress, for callers that show none."""
