"""Draws a verification: what is judged of each layer, with its limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .thresholds import THRESHOLDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .checks import LayerResult
    from .verify import Verification

_LINE, _LIMIT = "#0b6e4f", "#c1440e"


def draw(found: Verification) -> Figure:
    """Draw the figures of the layers that are judged, beside their limits. It needs matplotlib."""
    from matplotlib.figure import Figure

    limits = THRESHOLDS[found.limits_of]
    count = len(found.layers)
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    own, channel, loss = figure.subplots(1, 3)
    _panel(own, found, lambda layer: layer.own.relative, [limits.own] * count, "error of what the layer adds")
    _panel(channel, found, lambda layer: layer.own.channel, [limits.channel] * count, "the same, worst channel")
    losses = [1 - limits.cosine_after(layer) for layer in range(count)]
    _panel(loss, found, lambda layer: 1 - layer.errors.cosine, losses, "1 - cosine after the layer")
    judged = ", ".join(
        f"{check.what} {check.value:.4g} ({check.passes})" for check in found.checks if check.layer is None
    )
    figure.suptitle(f"{found.precision} {'passes' if found.passed else 'fails'}\n{judged}", fontsize=10)
    return figure


def _panel(
    axes: Any, found: Verification, figure: Callable[[LayerResult], float], limits: list[float], label: str
) -> None:
    layers = range(len(found.layers))
    axes.plot(layers, [figure(layer) for layer in found.layers], "o-", color=_LINE, label="found")
    axes.plot(layers, limits, "--", color=_LIMIT, label="most that passes")
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_title(label, fontsize=10)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
