"""How many tokens a second sessions draw together, beside one session alone.

    python -m benchmarks.batches [--layers 2] [--context 500] [--tokens 16] [--rounds 3] [--threads 2]
    python -m benchmarks.batches --bundle out.sala [--cpu-math fast] [--context 500]
    python -m benchmarks.batches --preset 9b [--layers 2] [--device cuda] [--context 64K] [--figures figures.jsonl]

Without `--preset` it is a model of the published sizes with 2 layers and random weights, or a bundle, on ONNX Runtime.
With it, the torch runtime runs random weights of that size. Prompts have an eighth of the context, two eighths and so
on. Sizes of batches take turns, and the ratios are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import sala_export
from benchmarks.figures import add_figure_options
from benchmarks.gpu_machine import require_gpu_or_name
from benchmarks.run_header import start_figures
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.errors import SalaError
from sala_export.machine import describe_machine
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.specs import parse_tokens

# tests/ is no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SIZES = (1, 2, 4, 8)
_CPU_LAYERS = 2


@contextmanager
def model_of(options: argparse.Namespace) -> Iterator[tuple[Model, int]]:
    """The model that the options ask for, and its layers. Raises: SalaError."""
    if options.preset is not None:
        require_gpu_or_name(options.device)
        from sala_export.torch_runtime.load import load_random

        random = load_random(options.preset, layers=options.layers, device=options.device)
        yield random, random.source.config.num_hidden_layers
        return
    if options.bundle is not None:
        config = Bundle.open(options.bundle).manifest.model.config
        yield load_on_cpu(options.bundle, options), config.num_hidden_layers
        return
    # Here, not above: the torch runtime needs no ONNX.
    from support.runtime_bundles import write_cpu_bundle

    layers = _CPU_LAYERS if options.layers is None else options.layers
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_random_checkpoint(checkpoint, "9b", layers=layers)
        bundle = write_cpu_bundle(checkpoint, Path(folder) / "model.sala")
        yield load_on_cpu(bundle, options), layers


def load_on_cpu(bundle: Path, options: argparse.Namespace) -> Model:
    """The bundle on ONNX Runtime. Raises: SalaError."""
    return sala_export.load(bundle, runtime="onnxruntime", threads=options.threads, cpu_math=options.cpu_math)


def add_model_options(parser: argparse.ArgumentParser, *, context: str) -> None:
    """Add the options that `model_of` reads, and those of prompts, with a default context, and answers."""
    parser.add_argument("--preset", help="random weights of this size, 9b or tiny, on the torch runtime")
    parser.add_argument("--bundle", type=Path, help="this bundle, on ONNX Runtime")
    parser.add_argument("--cpu-math", choices=["exact", "fast"], help="arithmetic on a CPU (default: exact)")
    parser.add_argument("--layers", type=int, help="use only the first N layers of the model")
    parser.add_argument("--device", help="device for the torch runtime: cuda or cpu (default: the GPU)")
    parser.add_argument("--context", default=context, help="tokens of the longest prompt (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens that each session draws (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is measured (default: 3)")
    parser.add_argument("--threads", type=int, default=0, help="threads that compute; 0 takes all cores (default: 0)")


def prefilled(model: Model, context: int, tokens: int) -> list[Session]:
    """Sessions with prompts of different lengths."""
    random = np.random.default_rng(0)
    sessions = []
    for place in range(1, max(SIZES) + 1):
        sessions.append(model.session(max_context=context + tokens + 2))
        sessions[-1].prefill(random.integers(3, model.vocab_size, max(1, context * place // max(SIZES))))
    return sessions


def draw(model: Model, sessions: Sequence[Session], size: int, tokens: int) -> float:
    """Seconds in which `size` forks draw tokens together; 0 stands for one session by itself."""
    chosen = [session.fork() for session in sessions[-max(1, size) :]]
    # The first is drawn from the logits of the prompt. The step behind it sets up what the others use.
    drawn = tokens + 2
    steps: Iterator[object] = (
        chosen[0].generate_tokens(max_new_tokens=drawn, stop_tokens=[])
        if size == 0
        else model.generate_batch_tokens(chosen, max_new_tokens=drawn, stop_tokens=[])
    )
    for _ in range(2):
        next(steps)
    start = time.perf_counter()
    for _ in range(tokens):
        next(steps)
    return time.perf_counter() - start


def measure(model: Model, options: argparse.Namespace) -> dict[int, float]:
    """Tokens a second by the size of the batch, where 0 stands for one session by itself. Raises: SalaError."""
    sessions = prefilled(model, parse_tokens(options.context), options.tokens)
    seconds: dict[int, list[float]] = {size: [] for size in (0, *SIZES)}
    for _ in range(options.rounds):
        for size, taken in seconds.items():
            taken.append(draw(model, sessions, size, options.tokens))
    return {size: max(1, size) * options.tokens / statistics.median(taken) for size, taken in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Exit code: 0, or that of the error that ended it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, context="500")
    add_figure_options(parser)
    options = parser.parse_args(arguments)
    figures = start_figures(options)
    try:
        with model_of(options) as (model, layers):
            rates = measure(model, options)
            runtime = model.runtime
    except SalaError as error:
        figures.write("problem", where="benchmarks.batches", message=str(error))
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    alone = rates.pop(0)
    print(f"{describe_machine().processor}, one session: {alone:.2f} tokens/s")
    for size, rate in rates.items():
        figures.write(
            "batch",
            runtime=runtime,
            model=options.preset or "9b",
            layers=layers,
            context=parse_tokens(options.context),
            sessions=size,
            tokens_per_second=rate,
            alone_tokens_per_second=alone,
        )
        print(f"{size} together: {rate:.2f} tokens/s, {rate / alone:.2f} times that")
    return 0


if __name__ == "__main__":
    sys.exit(main())
