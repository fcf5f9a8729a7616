"""Draws an evaluation: a heat map of length and depth for each task, and perplexity by position."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..specs import format_tokens
from .summary import Summary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = "RdYlGn"
_ALPHA = 0.6
"""So that the numbers on the colours can be read."""


def draw(summary: Summary) -> Figure:
    """Draw the results. It needs matplotlib."""
    from matplotlib.figure import Figure

    panels = len(summary.tasks) + bool(summary.perplexity)
    figure = Figure(figsize=(1.5 + 4.5 * panels, 4.5), layout="constrained")
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    for axes, task in zip(all_axes, summary.tasks, strict=False):
        _heat_map(axes, summary, task)
    if summary.perplexity:
        _curves(all_axes[-1], summary)
    figure.suptitle(f"{summary.asked['model']['name']}, {summary.asked['model']['precision']}", fontsize=10)
    return figure


def _heat_map(axes: Any, summary: Summary, task: str) -> None:
    cells = [cell for cell in summary.cells if cell.task == task]
    lengths, depths = summary.lengths(task), [*dict.fromkeys(cell.depth for cell in cells)]
    scores = np.full((len(depths), len(lengths)), np.nan)
    for cell in cells:
        row, column = depths.index(cell.depth), lengths.index(cell.length)
        scores[row, column] = cell.score
        axes.text(column, row, f"{cell.score:.0%}", ha="center", va="center", fontsize=8)
    axes.imshow(scores, cmap=_COLOURS, vmin=0, vmax=1, aspect="auto", alpha=_ALPHA)
    axes.set_xticks(range(len(lengths)), [format_tokens(length) for length in lengths], fontsize=8)
    axes.set_yticks(range(len(depths)), ["all" if depth is None else f"{depth:.0%}" for depth in depths], fontsize=8)
    axes.set_xlabel("length in tokens")
    axes.set_ylabel("depth")
    axes.set_title(task, fontsize=10)


def _curves(axes: Any, summary: Summary) -> None:
    for each in summary.perplexity:
        positions = [(part["first"] + part["last"] + 1) / 2 for part in each["bins"]]
        perplexities = [part["perplexity"] for part in each["bins"]]
        axes.plot(positions, perplexities, "o-", label=format_tokens(each["length"]))
    axes.set_xscale("log", base=2)
    axes.set_xlabel("position in tokens")
    axes.set_title("perplexity", fontsize=10)
    axes.grid(True, alpha=0.3)
    axes.legend(title="length", fontsize=8)
