"""What forks and ways back of a long context cost, in memory and time.

    python -m benchmarks.forks [--tokens 1M] [--forks 100] [--threads 2]
    python -m benchmarks.forks --preset 9b [--layers 2] [--device cuda] [--figures figures.jsonl]

Without `--preset` it is the small model of `benchmarks.cpu_memory` on ONNX Runtime, and memory is that of the process.
With it, the torch runtime runs random weights of that size, and memory is that of the caches. Every fork answers a
question of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import sala_export
from benchmarks.figures import add_figure_options
from benchmarks.gpu_machine import require_gpu_or_name
from benchmarks.run_header import start_figures
from sala_export.errors import SalaError
from sala_export.machine import describe_machine
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.specs import format_bytes, format_tokens, parse_tokens

NEW_TOKENS = 8
PIECE_TOKENS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class ForkCost:
    """What a context takes, and what forks of it take beside it. All are measured."""

    runtime: str
    model: str
    layers: int
    tokens: int
    prefill_seconds: float
    session_bytes: int
    fork_bytes: int
    """More than the session, after one fork has answered."""
    forks: int
    forks_bytes: int
    """More than the session, after all forks have answered."""
    fork_seconds: float
    """Of one fork, median."""
    first_answer_seconds: float
    """From a question to a fork until its first token, median: what the first step of a fork copies is in it."""
    rewind_end_seconds: float
    """Back to the end of the prompt, after an answer."""
    rewind_middle_seconds: float
    rewind_middle_reached: int
    """The checkpoint that a rewind to the middle of the prompt went to."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What is measured: a preset, or `small`, and how many layers of it."""

    name: str
    layers: int


def measure(model: Model, size: ModelSize, options: argparse.Namespace, taken_bytes: Callable[[], int]) -> ForkCost:
    """Stream a context, fork it, let every fork answer, and go back. Raises: SalaError."""
    tokens, count = parse_tokens(options.tokens), options.forks
    before = taken_bytes()
    session = model.session(max_context=tokens + 1000)
    start = time.perf_counter()
    session.prefill(pieces(tokens, model.vocab_size))
    prefill_seconds = time.perf_counter() - start
    held = taken_bytes() - before
    forks: list[Session] = []
    fork_seconds, answer_seconds = [], []
    for number in range(count):
        start = time.perf_counter()
        forks.append(session.fork())
        forked = time.perf_counter()
        forks[-1].prefill([number % 90 + 3, 5])
        answer_seconds.append(time.perf_counter() - forked)
        fork_seconds.append(forked - start)
        list(forks[-1].generate_tokens(max_new_tokens=NEW_TOKENS, stop_tokens=[]))
        if number == 0:
            first_bytes = taken_bytes() - before - held
    all_bytes = taken_bytes() - before - held
    end, _ = rewind(session, tokens)
    middle, reached = rewind(session, tokens // 2)
    return ForkCost(
        runtime=model.runtime,
        model=size.name,
        layers=size.layers,
        tokens=tokens,
        prefill_seconds=prefill_seconds,
        session_bytes=held,
        fork_bytes=first_bytes,
        forks=count,
        forks_bytes=all_bytes,
        fork_seconds=statistics.median(fork_seconds),
        first_answer_seconds=statistics.median(answer_seconds),
        rewind_end_seconds=end,
        rewind_middle_seconds=middle,
        rewind_middle_reached=reached,
    )


def rewind(session: Session, position: int) -> tuple[float, int]:
    """Go back after an answer: the seconds, and where it went to."""
    list(session.generate_tokens(max_new_tokens=NEW_TOKENS, stop_tokens=[]))
    start = time.perf_counter()
    reached = session.rewind(position)
    return time.perf_counter() - start, reached


def pieces(tokens: int, vocabulary: int) -> Iterator[NDArray[np.int64]]:
    """Random ids in pieces."""
    random = np.random.default_rng(0)
    sizes = (min(PIECE_TOKENS, tokens - start) for start in range(0, tokens, PIECE_TOKENS))
    return (random.integers(3, vocabulary, size) for size in sizes)


def process_bytes() -> int:
    """Bytes of memory that this process takes; pages that it maps twice count once."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


def describe(cost: ForkCost) -> str:
    """The figures as sentences."""
    return "\n".join(
        (
            f"{format_tokens(cost.tokens)} in {cost.prefill_seconds:.1f} s: the session takes "
            f"{format_bytes(cost.session_bytes)}",
            f"1 fork that answered: {share(cost.fork_bytes, cost)}",
            f"{cost.forks} forks that answered: {share(cost.forks_bytes, cost)}",
            f"a fork takes {1000 * cost.fork_seconds:.1f} ms, its first token "
            f"{1000 * cost.first_answer_seconds:.1f} ms (medians)",
            f"rewind to the end of the prompt: {1000 * cost.rewind_end_seconds:.1f} ms; to its middle, at token "
            f"{cost.rewind_middle_reached}: {1000 * cost.rewind_middle_seconds:.1f} ms",
        )
    )


def share(more: int, cost: ForkCost) -> str:
    return f"{format_bytes(more)} more, {100 * more / cost.session_bytes:.1f} % of the session"


def cost_of(options: argparse.Namespace) -> ForkCost:
    """Measure what the options say. Raises: SalaError."""
    if options.preset is None:
        from benchmarks.cpu_memory import MIXERS, write_bundle

        with tempfile.TemporaryDirectory() as folder:
            bundle = write_bundle(Path(folder))
            model: Model = sala_export.load(bundle, runtime="onnxruntime", threads=options.threads)
            return measure(model, ModelSize("small", len(MIXERS)), options, process_bytes)
    require_gpu_or_name(options.device)
    from sala_export.torch_runtime.load import load_random

    model = load_random(options.preset, layers=options.layers, device=options.device)
    size = ModelSize(options.preset, model.source.config.num_hidden_layers)
    return measure(model, size, options, lambda: model.cache_bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Exit code: 0, or that of the error that ended it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1M", help="tokens of the context (default: 1M)")
    parser.add_argument("--forks", type=int, default=100, help="forks that answer (default: 100)")
    parser.add_argument("--threads", type=int, default=0, help="threads that compute; 0 takes all cores (default: 0)")
    parser.add_argument("--preset", help="random weights of this size, 9b or tiny, on the torch runtime")
    parser.add_argument("--layers", type=int, help="use only the first N layers of the preset (default: all)")
    parser.add_argument("--device", help="device for the torch runtime: cuda or cpu (default: the GPU)")
    add_figure_options(parser)
    options = parser.parse_args(arguments)
    figures = start_figures(options)
    try:
        cost = cost_of(options)
    except SalaError as error:
        figures.write("problem", where="benchmarks.forks", message=str(error))
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    figures.write("forks", **asdict(cost))
    print(f"{describe_machine().processor}\n{describe(cost)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
