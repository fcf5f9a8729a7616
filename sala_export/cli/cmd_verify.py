"""`sala-export verify`"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from ..errors import RequestError
from ..plotting import plot_file
from ..specs import CpuMath
from .options import Tokens, cpu_math_option, json_option, model_options
from .output import print_json, progress_display, table_console
from .verify_polygraphy import layer_judge, polygraphy_options
from .verify_tables import print_verification

if TYPE_CHECKING:
    from ..checkpoint.reader import Checkpoint
    from ..interop.polygraphy.layer_judge import LayerJudge
    from ..progress import ProgressCallback
    from ..verification.tokens import VerificationTokens
    from ..verification.verify import Verification


@click.command()
@click.argument("target", type=click.Path(path_type=Path))
@model_options
@click.option("--tokens", type=Tokens(), default=2048, show_default=True, help="Number of tokens to compare on.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Take the tokens from these text samples (JSON lines).  [default: the text that ships with sala-export]",
)
@click.option(
    "--runtime",
    type=click.Choice(["tensorrt", "onnxruntime", "torch"]),
    help="Run TARGET whole on this runtime, tensorrt on the GPU that its engine is for, and compare the logits.  "
    "[default: layer by layer on the CPU]",
)
@cpu_math_option
@click.option(
    "--plot", type=click.Path(path_type=Path), help="Write a plot of the errors by layer (.png, .svg or .pdf)."
)
@polygraphy_options
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
    runtime: str | None,
    cpu_math: str | None,
    plot: Path | None,
    as_json: bool,
    polygraphy: bool,
    check_error_stat: str | None,
    atol: float | None,
    rtol: float | None,
) -> int:
    """Check that a bundle or a quantised checkpoint still answers like the original.

    TARGET is the bundle or quantised checkpoint, --model the original. Both run on the same tokens. By default they run
    on the CPU, layer by layer: the CPU form of a bundle in ONNX Runtime, a quantised checkpoint emulated in torch. The
    exit code is 1 if a figure is beyond its limit. docs/calibration.md explains the figures.

    For example:

    \b
      sala-export verify sala-fp8
      sala-export verify sala.sala --model my-checkpoint --plot verify.png
    """
    from ..building.requests import ModelRequest
    from ..verification.tokens import verification_tokens

    _require_layers(runtime, {f"--layers {layers}": layers, f"--plot {plot}": plot, "--polygraphy": polygraphy or None})
    judge = layer_judge(polygraphy, (check_error_stat, atol, rtol), to_stderr=as_json)
    with plot_file(plot) as save_plot:
        source = ModelRequest(model=model, revision=revision, layers=layers).open()
        chosen = verification_tokens(source.checkpoint, tokens, calibration)
        with progress_display(console) as on_progress:
            if runtime is None:
                found = _by_layers(source.checkpoint, target, (layers, cpu_math, judge), chosen, on_progress)
            else:
                found = _on_runtime(source.checkpoint, target, (runtime, cpu_math), chosen, on_progress)
        if save_plot is not None:
            from ..verification.plot import draw

            save_plot(draw(found))
    if as_json:
        print_json(found.to_dict() | ({} if judge is None else {"polygraphy": judge.to_dict()}))
    else:
        print_verification(table_console(), found)
        if judge is not None and not judge.passed:
            click.echo(f"fails: {judge.verdict()}")
    return 0 if found.passed and (judge is None or judge.passed) else 1


def _require_layers(runtime: str | None, options: Mapping[str, object]) -> None:
    """Raises: RequestError for what a runtime that runs whole has not."""
    for option, value in options.items():
        if runtime is not None and value is not None:
            raise RequestError(f"{option}: --runtime {runtime} runs the model whole; leave one of the two out")


def _by_layers(
    original: Checkpoint,
    target: Path,
    how: tuple[int | None, str | None, LayerJudge | None],
    tokens: VerificationTokens,
    on_progress: ProgressCallback,
) -> Verification:
    """Args: `how`: number of layers, arithmetic on a CPU, and what else sees the layers."""
    from ..verification.targets import open_original, open_target
    from ..verification.verify import run_verification

    layers, cpu_math, judge = how
    first = open_original(original)
    tested, precision = open_target(target, layers, None if cpu_math is None else CpuMath(cpu_math))
    return run_verification(first, tested, precision, tokens, on_layer=judge, on_progress=on_progress)


def _on_runtime(
    original: Checkpoint,
    target: Path,
    how: tuple[str, str | None],
    tokens: VerificationTokens,
    on_progress: ProgressCallback,
) -> Verification:
    """Args: `how`: the runtime, and its arithmetic on a CPU."""
    from ..loading import load
    from ..model_source import ModelSource
    from ..verification.targets import description_of, open_original, require_same_model
    from ..verification.verify import run_session_verification

    first = open_original(original)
    source = ModelSource.open(target)
    require_same_model(original, source)
    runtime, cpu_math = how
    model = load(source, runtime=runtime, cpu_math=cpu_math)
    return run_session_verification(
        first,
        model,
        source.quantized() or source.precision(),
        tokens,
        description=description_of(source, model),
        on_progress=on_progress,
    )
