"""Draws a verification: cosine, error and largest activation by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UnsupportedError

if TYPE_CHECKING:
    from .verify import Verification

_LINE, _LIMIT = "#0b6e4f", "#c1440e"


def draw(found: Verification, path: Path) -> None:
    """Write the picture in the format of the file name's ending.

    Raises: UnsupportedError if matplotlib is not installed, OSError if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UnsupportedError("--plot needs matplotlib: pip install 'sala-export[plot]'") from None
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
    figure.savefig(path, dpi=150)


def _finish(axes: Any, label: str) -> None:
    axes.set_xlabel("layer")
    axes.set_ylabel(label)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
