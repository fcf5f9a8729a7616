"""Draws a verification: cosine, error and largest activation by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .verify import Verification

_LINE, _LIMIT = "#0b6e4f", "#c1440e"


def draw(found: Verification) -> Figure:
    """Draw the errors by layer, and the largest activations. It needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    cosine, error, activation = figure.subplots(1, 3)
    layers = range(len(found.layers))
    errors = [layer.errors for layer in found.layers]
    cosine.plot(layers, [each.cosine for each in errors], "o-", color=_LINE, label="mean")
    cosine.plot(layers, [each.least_cosine for each in errors], "v:", color=_LINE, label="least of all tokens")
    cosine.axhline(found.thresholds.cosine, color=_LIMIT, linestyle="--", label="threshold of the mean")
    _finish(cosine, "cosine of hidden rows")
    error.plot(layers, [each.relative_error for each in errors], "o-", color=_LINE, label="relative, all rows")
    error.plot(layers, [each.max_error for each in errors], "^:", color=_LINE, label="largest of an element")
    error.set_yscale("log")
    _finish(error, "error of hidden rows")
    seen = [(index, layer.largest_activation) for index, layer in enumerate(found.layers) if layer.largest_activation]
    if seen:
        activation.plot(*zip(*seen, strict=True), "o-", color=_LINE, label="largest activation")
    activation.axhline(found.activation_limit, color=_LIMIT, linestyle="--", label="largest number of the type")
    activation.set_yscale("log")
    _finish(activation, "magnitude")
    verdict = "passes" if found.passed else "fails"
    figure.suptitle(
        f"{found.precision} {verdict}: mean KL {found.logits.kl:.4f}, top-1 agreement {found.logits.top1:.1%} "
        f"on {found.logits.tokens} tokens"
    )
    return figure


def _finish(axes: Any, label: str) -> None:
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
