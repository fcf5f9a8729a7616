"""Prints the result of `sala-export verify`, readable at 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..specs import format_bytes

if TYPE_CHECKING:
    from ..verification.verify import Verification

_LEGEND = (
    "own: relative error of what the layer adds, given the original's input;",
    "channel: its worst channel; cosine, least, error: of the rows after the layer,",
    "the errors of all layers before it included",
)


def print_verification(console: Console, found: Verification) -> None:
    """Print what ran on what, the figures of every layer, and those that are judged."""
    console.print(f"tested:   {found.tested}", soft_wrap=True)
    console.print(f"original: {found.original}", soft_wrap=True)
    console.print(found.tokens, soft_wrap=True)
    console.print(f"{found.seconds:.0f} s, peak memory {format_bytes(found.peak_host_bytes)}")
    console.print()
    if found.layers:
        console.print(_layer_table(found))
        for line in _LEGEND:
            console.print(line)
        console.print()
    console.print(_judged_table(found))
    if not found.logits.predicts:
        console.print("perplexity is not judged: to the original these tokens are chance")
    console.print()
    for check in found.checks:
        if not check.passed:
            console.print(f"fails: {check}", soft_wrap=True)
    if found.passed:
        console.print("passes")
    else:
        console.print("hint: figures of two runs compare only on the same tokens; calibrate on text like your own")


def _layer_table(found: Verification) -> Table:
    table = Table("layer", "own", "channel", "cosine", "least", "error", "largest", "range", "clipped", box=None)
    for index, layer in enumerate(found.layers):
        errors = layer.errors
        table.add_row(
            str(index),
            f"{layer.own.relative:.4f}",
            f"{layer.own.channel:.4f}",
            f"{errors.cosine:.5f}",
            f"{errors.least_cosine:.5f}",
            f"{errors.relative_error:.4f}",
            _optional(layer.largest_activation, "{:.4g}"),
            _optional(layer.input_range, "{:.2f}"),
            _optional(layer.saturated, "{:.1e}"),
        )
    return table


def _judged_table(found: Verification) -> Table:
    table = Table("judged", "layer", "found", "passes", "", box=None)
    for check in found.checks:
        table.add_row(
            check.what,
            "" if check.layer is None else str(check.layer),
            f"{check.value:.4g}",
            check.passes,
            "" if check.passed else "FAILS",
        )
    return table


def _optional(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
