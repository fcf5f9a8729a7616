"""Models that read and write text, as `generate` and `chat` use them."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from ..errors import UnsupportedError, printable_text
from ..specs import RUNTIMES
from .options import Command, cpu_math_option
from .output import load_progress, progress_display
from .sampling_options import Sampling
from .signals import raise_received, raising

if TYPE_CHECKING:
    from ..files import TextFile
    from ..model_source import ModelSource
    from ..runtime.model import Model
    from ..runtime.session import Session
    from ..runtime.text import Tokenizer

_runtime_option = click.option(
    "--runtime",
    type=click.Choice(RUNTIMES),
    default="auto",
    show_default=True,
    help="tensorrt runs on a GPU that the bundle was built for, onnxruntime on the CPU, torch on any GPU or the CPU. "
    "torch also takes checkpoints. auto chooses between tensorrt and onnxruntime.",
)


def runtime_options(command: Command) -> Command:
    """Add `--runtime` and `--cpu-math`."""
    return _runtime_option(cpu_math_option(command))


def open_text_model(path: Path, *, runtime: str, weights: Path | None) -> tuple[ModelSource, Tokenizer]:
    """Open a bundle, or for torch also a checkpoint, and load its tokenizer but not its weights.

    Raises: UnsupportedError if there is no tokenizer; as `ModelSource.open` and `Tokenizer.from_files`.
    """
    from ..loading import TORCH
    from ..model_source import ModelSource

    source = (
        ModelSource.open(path, other_weights=weights)
        if runtime == TORCH
        else ModelSource.of_bundle(path, other_weights=weights)
    )
    return source, tokenizer_of(path, source.text_files())


def tokenizer_of(path: Path, texts: Mapping[str, TextFile]) -> Tokenizer:
    """Make the tokenizer of the text files of the model at `path`. Raises: UnsupportedError if there are none."""
    from ..runtime.text import Tokenizer

    if not texts:
        raise UnsupportedError(
            f"{path} has no tokenizer, so it cannot read text: use sala_export.load and token ids, or build it again "
            "from a checkpoint with tokenizer.json"
        )
    return Tokenizer.from_files(texts)


def load_weights(
    console: Console, source: ModelSource, tokenizer: Tokenizer, *, runtime: str, cpu_math: str | None
) -> Model:
    """Load the model of a source, and show how far it is. Raises: as `sala_export.load`."""
    from ..loading import TORCH, load

    if runtime == TORCH:
        return load(source, runtime=runtime, cpu_math=cpu_math, tokenizer=tokenizer)
    with progress_display(console) as on_progress:
        shown = load_progress(on_progress)
        return load(source, runtime=runtime, cpu_math=cpu_math, tokenizer=tokenizer, on_progress=shown)


def show_runtime(console: Console, model: Model, source: ModelSource, *, only_warn: bool = False) -> str | None:
    """Say what a model runs on and why. It is a warning if a GPU is here and not used.

    Returns: the line if it is none and `only_warn` has kept it back.
    """
    from ..loading import runs_on

    line, leaves_gpu_unused = runs_on(model, source)
    if only_warn and not leaves_gpu_unused:
        return line
    console.print(f"warning: {line}" if leaves_gpu_unused else line, soft_wrap=True)
    return None


def show_answer(console: Console, session: Session, tokenizer: Tokenizer, sampling: Sampling) -> None:
    """Generate an answer, and print its text while it comes and a line about it at the end."""
    start, position = time.monotonic(), session.position
    stream_answer(session, tokenizer, sampling, [])
    seconds, tokens = time.monotonic() - start, session.position - position
    reason = (session.finish_reason or "").replace("_", "-")
    rate = f"{tokens / seconds:,.1f} tokens/s"
    if sampling["speculation"] and (counts := session.speculation):
        rate += f", {counts.tokens_per_step:.2f} tokens/step"
    console.print(f"generated: {tokens:,} tokens, {rate}, ended by {reason}", soft_wrap=True)


def stream_answer(session: Session, tokenizer: Tokenizer, sampling: Sampling, shown: list[str]) -> None:
    """Generate an answer and print it while it comes. `shown` gets its pieces, also if a signal ends it."""
    for piece in _pieces(session, tokenizer, sampling):
        shown.append(piece)
        show_text(piece)
    show_text("\n")


def describe_answer(session: Session, tokenizer: Tokenizer, sampling: Sampling) -> dict[str, Any]:
    """Generate an answer without showing it. Returns it as plain JSON values, under the names that sala-run uses."""
    start, position = time.monotonic(), session.position
    pieces = []
    for piece in _pieces(session, tokenizer, sampling):
        pieces.append(piece)
        raise_received()
    return {
        "prompt_tokens": position,
        "text": "".join(pieces),
        "tokens": session.tokens[position:].tolist(),
        "finish_reason": session.finish_reason,
        "generate_seconds": time.monotonic() - start,
    }


def _pieces(session: Session, tokenizer: Tokenizer, sampling: Sampling) -> Iterator[str]:
    """Generate an answer. Yields what each token adds to the text, which may be nothing, and the rest at the end."""
    from ..runtime.answer import answer_decoder

    decoder = answer_decoder(tokenizer, sampling["stop_strings"])
    for token_id in session.generate_tokens(**sampling):
        yield decoder.push(token_id)
    yield decoder.finish()


def show_text(text: str) -> None:
    """Write a piece of the answer, which may be empty. A signal counts here, also while a full pipe makes it wait."""
    with raising():
        click.echo(printable_text(text) if sys.stdout.isatty() else text, nl=False)
