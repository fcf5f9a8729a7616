"""Prints the result of `sala-export eval`, readable at 80 columns with the default options."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..specs import format_bytes, format_tokens

if TYPE_CHECKING:
    from ..evaluation.summary import Summary


def print_evaluation(console: Console, summary: Summary) -> None:
    """Print the scores of every task by length and depth, and perplexity by position."""
    model = summary.asked["model"]
    console.print(f"{model['name']}, {model['precision']}, {model['runtime']}", soft_wrap=True)
    console.print(f"peak memory {format_bytes(summary.peak_host_bytes)}")
    for table in (*_retrieval(summary), *_perplexity(summary)):
        console.print()
        console.print(table)


def _retrieval(summary: Summary) -> list[Table]:
    if not summary.cells:
        return []
    depths = sorted({cell.depth for cell in summary.cells if cell.depth is not None})
    table = Table("task", "length", *(f"{depth:.0%}" for depth in depths), "all", box=None)
    scores = {(cell.task, cell.length, cell.depth): f"{cell.score:.0%}" for cell in summary.cells}
    for task in summary.tasks:
        for length in summary.lengths(task):
            by_depth = (scores.get((task, length, depth), "") for depth in depths)
            table.add_row(task, format_tokens(length), *by_depth, f"{summary.score(task, length):.0%}")
    return [table]


def _perplexity(summary: Summary) -> list[Table]:
    if not summary.perplexity:
        return []
    whole = Table("length", "perplexity", "nats per token", "bits per byte", box=None)
    by_position = Table("positions", *(format_tokens(each["length"]) for each in summary.perplexity), box=None)
    by_position.title = "perplexity by position and length"
    found = {}
    for each in summary.perplexity:
        whole.add_row(
            format_tokens(each["length"]),
            f"{each['perplexity']:.4g}",
            f"{each['nll']:.4f}",
            f"{each['bits_per_byte']:.4f}",
        )
        for part in each["bins"]:
            found[part["first"], each["length"]] = f"{part['perplexity']:.4g}"
    for first in sorted({first for first, _ in found}):
        row = (found.get((first, each["length"]), "") for each in summary.perplexity)
        by_position.add_row(f"from {format_tokens(first)}", *row)
    return [whole, by_position]
