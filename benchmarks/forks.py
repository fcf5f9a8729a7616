"""What forks, ways back and checkpoints of a long context cost on the CPU, in memory and time.

For example, `python -m benchmarks.forks --tokens 1048576` streams a million tokens through the small model of
`benchmarks.cpu_memory`, forks the session a hundred times, and lets every fork answer.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import sala_export
from benchmarks.cpu_memory import write_bundle
from sala_export.machine import describe_machine
from sala_export.runtime.session import Session
from sala_export.specs import format_bytes, format_tokens

FORKS = 100
NEW_TOKENS = 8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 20, help="Tokens of the context.")
    parser.add_argument("--threads", type=int, default=0, help="Threads that compute. 0 takes all cores.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = sala_export.load(write_bundle(Path(folder)), runtime="onnxruntime", threads=options.threads)
        before = taken_bytes()
        session = model.session(max_context=options.tokens + 1000)
        start = time.perf_counter()
        session.prefill(pieces(options.tokens))
        print(f"{describe_machine().processor}, {format_tokens(options.tokens)} in {time.perf_counter() - start:.0f} s")
        book = taken_bytes() - before
        print(f"the session: {format_bytes(book)} measured, {format_bytes(model.cache_bytes)} of them caches")
        report_forks(session, book)
        report_rewind(session)


def report_forks(session: Session, book: int) -> None:
    """Fork a session, once and many times. Every fork answers a question of its own."""
    forks: list[Session] = []
    seconds: list[float] = []
    before = taken_bytes()
    for count in (1, 10, FORKS):
        while len(forks) < count:
            start = time.perf_counter()
            forks.append(session.fork())
            seconds.append(time.perf_counter() - start)
            forks[-1].prefill([len(forks) % 90 + 3, 5])
            list(forks[-1].generate_tokens(max_new_tokens=NEW_TOKENS, stop_tokens=[]))
        more = taken_bytes() - before
        print(f"{count} forks that answered: {format_bytes(more)} more, {100 * more / book:.1f} % of the session")
    print(f"a fork: {1000 * statistics.median(seconds):.1f} ms (median of {FORKS})")


def report_rewind(session: Session) -> None:
    """Go back to the end of the prompt after an answer, and to the middle of the prompt."""
    end = session.position
    list(session.generate_tokens(max_new_tokens=NEW_TOKENS, stop_tokens=[]))
    for position in (end, end // 2):
        start = time.perf_counter()
        reached = session.rewind(position)
        print(f"rewind to {position}: reached {reached} in {1000 * (time.perf_counter() - start):.1f} ms")


def pieces(tokens: int) -> Iterator[NDArray[np.int64]]:
    """Random ids in pieces."""
    random = np.random.default_rng(0)
    return (random.integers(3, 97, min(4096, tokens - start)) for start in range(0, tokens, 4096))


def taken_bytes() -> int:
    """Bytes of memory that this process takes; pages that it maps twice count once."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024


if __name__ == "__main__":
    main()
