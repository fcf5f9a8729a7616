"""How near decoding on a CPU is to the memory: a token beside a plain reading of the weights that it reads.

    python -m benchmarks.cpu_decode nine.sala [--context 512] [--tokens 4] [--rounds 8] [--threads 2]

Both sides read the same pages of the bundle's files, in turns. So it counts neither where the system has put them in
memory nor how large its pages are. The plain reading is NumPy's `max`, on as many threads. Figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.batches import load_on_cpu
from benchmarks.tables import markdown
from sala_export.bundle.reader import Bundle
from sala_export.checkpoint.keymap import EMBEDDING
from sala_export.errors import SalaError
from sala_export.machine import describe_machine
from sala_export.planner.cpu_rates import reader
from sala_export.specs import parse_tokens

_ALIGNMENT = 64


def spans(bundle: Bundle) -> dict[str, list[tuple[int, int]]]:
    """Where the weights lie that a token reads, by file: first byte and the byte behind the last.

    The embedding, of which it reads one row, is left out. Neighbours are one span.
    """
    manifest = bundle.manifest
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, entry in sorted(manifest.weights.tensors.items(), key=lambda item: (item[1].file, item[1].offset)):
        if name == EMBEDDING and not manifest.model.config.tie_word_embeddings:
            continue
        begin, of_file = entry.offset, found[entry.file]
        if of_file and begin - of_file[-1][1] < _ALIGNMENT:
            begin = of_file.pop()[0]
        of_file.append((begin, entry.offset + entry.bytes))
    return found


def mapped_weights(bundle: Bundle) -> list[NDArray[np.float32]]:
    """The spans as mappings [numbers], without some bytes at their ends."""
    mapped = []
    for file, of_file in spans(bundle).items():
        for begin, end in of_file:
            first = -(-begin // _ALIGNMENT) * _ALIGNMENT
            numbers = (end - first) // np.dtype(np.float32).itemsize
            if numbers > 0:
                mapped.append(np.memmap(bundle.directory / file, np.float32, "r", first, numbers))
    return mapped


def seconds_of(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> tuple[float, float, int]:
    """Seconds of a token and of reading its weights, and their bytes. Raises: SalaError."""
    context, new_tokens = parse_tokens(options.context), options.rounds * options.tokens + 1
    model = load_on_cpu(options.bundle, options)
    session = model.session(max_context=context + new_tokens)
    session.prefill(np.random.default_rng(0).integers(3, model.vocab_size, context))
    tokens = session.generate_tokens(max_new_tokens=new_tokens, stop_tokens=[])
    next(tokens)  # from the logits of the prompt
    weights = mapped_weights(Bundle.open(options.bundle))
    drawn, read = [], []
    with reader(weights, options.threads) as reading:
        reading()
        for _ in range(options.rounds):
            drawn += [seconds_of(lambda: next(tokens)) for _ in range(options.tokens)]
            read.append(seconds_of(reading))
    return statistics.median(drawn), statistics.median(read), sum(span.nbytes for span in weights)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Exit code: 0, or that of the error that ended it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--cpu-math", choices=["exact", "fast"], default="fast", help="arithmetic (default: fast)")
    parser.add_argument("--context", default="512", help="tokens of the prompt (default: 512)")
    parser.add_argument("--tokens", type=int, default=4, help="tokens between two readings (default: 4)")
    parser.add_argument("--rounds", type=int, default=8, help="readings (default: 8)")
    parser.add_argument("--threads", type=int, default=2, help="threads that each side computes with (default: 2)")
    options = parser.parse_args(arguments)
    try:
        token, reading, size = measure(options)
    except SalaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    lines = [
        [what, f"{1e3 * seconds:.0f} ms", f"{size / seconds * 1e-9:.1f} GB/s"]
        for what, seconds in (("one token", token), ("reading its weights", reading))
    ]
    lines.append(["", f"{size * 1e-9:.2f} GB", f"{reading / token:.2f} of the reading"])
    sys.stdout.write(f"{describe_machine().processor}\n{markdown(['', 'time', 'rate'], lines)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
