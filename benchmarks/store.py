"""What a state store writes and reads for a long context: all of it once, and then only what a turn adds.

    python -m benchmarks.store [--tokens 1M] [--grown 1000] [--others 20000] [--threads 2] [--folder DIR]

The model is the small one of `benchmarks.cpu_memory`, on ONNX Runtime. DIR is where the store is made, in a folder of
its own that goes afterwards. By default it is the system's folder for temporary files. With `--others` the store has so
many states of other conversations, each with a file of a few bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import sala_export
from benchmarks.cpu_memory import write_bundle
from benchmarks.forks import pieces
from sala_export.machine import describe_machine
from sala_export.runtime.model import Model
from sala_export.runtime.state_index import IndexedState
from sala_export.specs import format_bytes, format_tokens, parse_tokens


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", default="1M", help="tokens of the context (default: 1M)")
    parser.add_argument("--grown", type=int, default=1000, help="tokens of the turn behind it (default: 1000)")
    parser.add_argument("--others", type=int, default=0, help="states of other conversations (default: 0)")
    parser.add_argument("--threads", type=int, default=0, help="threads that compute; 0 takes all cores (default: 0)")
    parser.add_argument("--folder", type=Path, help="make the store in this folder (default: a temporary one)")
    options = parser.parse_args()
    tokens = parse_tokens(options.tokens)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        model = sala_export.load(write_bundle(Path(folder)), runtime="onnxruntime", threads=options.threads)
        store = sala_export.StateStore(Path(folder) / "states")
        session = model.session(max_context=tokens + options.grown)
        session.prefill(pieces(tokens, model.vocab_size))
        whole = model.state_bytes(tokens)
        print(
            f"{describe_machine().processor}, {format_tokens(tokens)}, one state file would have {format_bytes(whole)}"
        )
        add_others(store, options.others, tokens, model)
        report_save("saved", store, lambda: store.save(session))
        session.prefill(np.random.default_rng(1).integers(3, model.vocab_size, options.grown))
        report_save(f"{options.grown} tokens more, saved again", store, lambda: store.save(session))
        start = time.perf_counter()
        restored = model.restore_longest(store, session.tokens, max_context=session.max_context)
        print(f"restored: {restored.position} tokens in {time.perf_counter() - start:.2f} s")
        np.testing.assert_array_equal(restored.logits, session.logits)


def add_others(store: sala_export.StateStore, count: int, most_tokens: int, model: Model) -> None:
    """Add states of as many lengths as conversations have."""
    lengths = np.random.default_rng(2).integers(1, most_tokens + 1, count).tolist()
    states, sizes = [], {}
    for number, length in enumerate(lengths):
        digest = hashlib.sha256(str(number).encode()).hexdigest()
        file = store._file(digest)
        file.parent.mkdir(exist_ok=True)
        sizes[digest] = file.write_bytes(b"other")
        states.append(IndexedState(length, digest, (digest,)))
    store._index.add(states, sizes, [], model=model.fingerprint, precision=model.precision)


def report_save(name: str, store: sala_export.StateStore, save: Callable[[], None]) -> None:
    """Run a save, and say what it wrote."""
    before, start = store.bytes, time.perf_counter()
    save()
    seconds = time.perf_counter() - start
    print(f"{name}: {format_bytes(store.bytes - before)} in {seconds:.2f} s, {len(store.states)} states in the store")


if __name__ == "__main__":
    main()
