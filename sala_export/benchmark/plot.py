"""Draws a report: time to the first token over the length of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..specs import format_tokens
from .report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MEASURED, _FLOOR, _PUBLISHED = "#0b6e4f", "#444444", ("#c1440e", "#d98e04")


def draw(report: Report) -> Figure:
    """Draw what was measured, the floor of the GPU and what was published. It needs matplotlib."""
    from matplotlib.figure import Figure

    contexts = [row.context for row in report.rows]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    measured = [row.first_token.median for row in report.rows]
    axes.plot(contexts, measured, marker="o", color=_MEASURED, label=f"measured, {report.runtime} {report.precision}")
    floors = [(context, floor.first_token) for context in contexts if (floor := report.floor(context)) is not None]
    if floors:
        axes.plot(*zip(*floors, strict=True), linestyle="--", color=_FLOOR, label="floor of this GPU")
    published = [(gpu, context, s) for context in contexts for gpu, s in report.published(context).items()]
    for color, gpu in zip(_PUBLISHED, sorted({gpu for gpu, _, _ in published}), strict=False):
        points = [(context, seconds) for name, context, seconds in published if name == gpu]
        axes.plot(*zip(*points, strict=True), marker="x", color=color, label=f"published, {gpu} bf16")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(contexts, [format_tokens(context) for context in contexts])
    axes.set_xlabel("tokens of the prompt")
    axes.set_ylabel("seconds to the first token")
    axes.legend(frameon=False)
    return figure
