"""How many tokens a second sessions draw together, beside one session alone, on the CPU.

    python -m benchmarks.batches [--layers 2] [--context 500] [--tokens 16] [--rounds 3] [--threads 2]

The model has the published sizes with fewer layers, random weights and ONNX Runtime. Sizes of batches take turns, and
the ratios are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

import sala_export
from sala_export.checkpoint.random_checkpoint import write_random_checkpoint
from sala_export.machine import describe_machine
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session

# tests/ is no package.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.runtime_bundles import write_cpu_bundle

SIZES = (1, 2, 4, 8)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="layers of the model (default: 2)")
    parser.add_argument("--context", type=int, default=500, help="tokens of the longest prompt (default: 500)")
    parser.add_argument("--tokens", type=int, default=16, help="tokens that each session draws (default: 16)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each size (default: 3)")
    parser.add_argument("--threads", type=int, default=0, help="threads that compute; 0 takes all cores (default: 0)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        write_random_checkpoint(checkpoint, "9b", layers=options.layers)
        bundle = write_cpu_bundle(checkpoint, Path(folder) / "model.sala")
        model = sala_export.load(bundle, runtime="onnxruntime", threads=options.threads)
        sessions = prefilled(model, options.context)
        seconds: dict[int, list[float]] = {size: [] for size in (0, *SIZES)}
        for _ in range(options.rounds):
            for size, taken in seconds.items():
                taken.append(draw(model, sessions, size, options.tokens))
        alone = rate(1, options.tokens, seconds.pop(0))
        print(f"{describe_machine().processor}, one session: {alone:.2f} tokens/s")
        for size, taken in seconds.items():
            together = rate(size, options.tokens, taken)
            print(f"{size} together: {together:.2f} tokens/s, {together / alone:.2f} times that")


def prefilled(model: Model, context: int) -> list[Session]:
    """Sessions with prompts of different lengths."""
    random = np.random.default_rng(0)
    sessions = []
    for place in range(max(SIZES)):
        sessions.append(model.session(max_context=context + 1000))
        sessions[-1].prefill(random.integers(3, model.vocab_size, context * (place + 1) // max(SIZES)))
    return sessions


def draw(model: Model, sessions: Sequence[Session], size: int, tokens: int) -> float:
    """Seconds in which `size` forks draw tokens together; 0 stands for one session by itself."""
    chosen = [session.fork() for session in sessions[-max(1, size) :]]
    steps: Iterator[object] = (
        chosen[0].generate_tokens(max_new_tokens=tokens + 1, stop_tokens=[])
        if size == 0
        else model.generate_batch_tokens(chosen, max_new_tokens=tokens + 1, stop_tokens=[])
    )
    next(steps)  # drawn from the logits of the prompt
    start = time.perf_counter()
    for _ in range(tokens):
        next(steps)
    return time.perf_counter() - start


def rate(size: int, tokens: int, seconds: Sequence[float]) -> float:
    """Tokens a second, by the median."""
    return size * tokens / statistics.median(seconds)


if __name__ == "__main__":
    main()
