"""Cells and tables of what benchmarks print."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table, ready to paste."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


def duration(seconds: float) -> str:
    """Three digits in the unit a person would choose."""
    for factor, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= factor:
            return f"{seconds / factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{100 * ratio:.0f} %"
