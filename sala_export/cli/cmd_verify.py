"""`sala-export verify`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from ..plotting import plot_file
from ..specs import format_bytes
from .options import Tokens, json_option, model_options
from .output import print_json, progress_display, table_console

if TYPE_CHECKING:
    from ..verification.verify import LayerResult, Verification


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@model_options
@click.option("--tokens", type=Tokens(), default=2048, show_default=True, help="Number of tokens to compare on.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Take the tokens from these text samples (JSON lines).  [default: random tokens]",
)
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Write a plot of the errors by layer (.png, .svg or .pdf)."
)
@json_option
@click.pass_obj
def verify(
    console: Console,
    target: Path,
    model: str,
    revision: str | None,
    layers: int | None,
    tokens: int,
    calibration: Path | None,
    plot: Path | None,
    as_json: bool,
) -> int:
    """Check that a bundle or a quantised checkpoint still answers like the original.

    TARGET is the bundle or quantised checkpoint, --model the original. Both run on the same tokens, on the CPU, layer
    by layer: a bundle's graph in ONNX Runtime, a quantised checkpoint emulated in torch. The exit code is 1 if an error
    is above its threshold. docs/calibration.md has the thresholds.
    """
    from ..building.requests import ModelRequest
    from ..verification.targets import open_target
    from ..verification.tokens import verification_tokens
    from ..verification.verify import run_verification

    with plot_file(plot) as save_plot:
        source = ModelRequest(model=model, revision=revision, layers=layers).open()
        original, tested, precision = open_target(target, source.checkpoint, layers)
        input_ids = verification_tokens(source.checkpoint, tokens, calibration)
        with progress_display(console) as on_progress:
            found = run_verification(
                original, tested, precision, input_ids, text=calibration is not None, on_progress=on_progress
            )
        if save_plot is not None:
            from ..verification.plot import draw

            save_plot(draw(found))
    if as_json:
        print_json(found.to_dict())
    else:
        _print_tables(found)
    return 0 if found.passed else 1


def _print_tables(found: Verification) -> None:
    console = table_console()
    console.print(f"{found.precision}: {found.tested}, against {found.original}; {found.logits.tokens} tokens")
    console.print(f"{found.seconds:.0f} s, peak memory {format_bytes(found.peak_host_bytes)}")
    console.print()
    console.print(_layer_table(found))
    console.print()
    console.print(_logit_table(found))
    console.print()
    for failure in found.failures:
        console.print(f"fails: {failure}")
    if found.passed:
        console.print("passes")


def _layer_table(found: Verification) -> Table:
    table = Table(
        "layer", "cosine", "least", "relative error", "max error", "largest activation", "of the type", "of the range",
        box=None,
    )  # fmt: skip
    for index, layer in enumerate(found.layers):
        errors = layer.errors
        table.add_row(
            str(index),
            f"{errors.cosine:.5f}",
            f"{errors.least_cosine:.5f}",
            f"{errors.relative_error:.4f}",
            f"{errors.max_error:.3g}",
            _optional(layer.largest_activation, "{:.4g}"),
            _optional(layer.largest_activation, "{:.1e}", 1 / found.activation_limit),
            _range(layer),
        )
    return table


def _range(layer: LayerResult) -> str:
    text = _optional(layer.input_range, "{:.2f}")
    return f"{text}, {layer.saturated:.1e} saturate" if layer.saturated else text


def _logit_table(found: Verification) -> Table:
    logits, limits = found.logits, found.thresholds
    table = Table("logits", "", "passes", box=None)
    table.add_row("mean KL, nats", f"{logits.kl:.5f}", f"at most {limits.kl:g}")
    table.add_row("largest KL", f"{logits.max_kl:.4f}", "")
    table.add_row("top-1 agreement", f"{logits.top1:.2%}", f"at least {limits.top1:.0%}")
    table.add_row("perplexity of the original", f"{logits.original_perplexity:.4f}", "")
    table.add_row("perplexity", f"{logits.tested_perplexity:.4f}", f"at most {limits.perplexity_ratio:g} times that")
    table.add_row("standard deviation of the original", f"{logits.logit_std:.2f}", "")
    return table


def _optional(value: float | None, form: str, factor: float = 1.0) -> str:
    return "-" if value is None else form.format(value * factor)
