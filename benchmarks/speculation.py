"""How much sooner an answer comes with speculation, by how much of it was there before.

    python -m benchmarks.speculation [--context 500] [--tokens 128] [--depth 8] [--rounds 3] [--threads 2]
    python -m benchmarks.speculation --preset 9b [--layers 2] [--device cuda] [--context 64K]

Without options it is the `medium` model of `benchmarks.serve_cost`, whose steps take about 10 ms on two cores. With
`--layers` or `--preset` it is one of `benchmarks.batches`. A constraint says every token of the answer, so that both
ways take the same text. There are four texts:

* `copy` repeats the prompt, so every draft is right.
* `guess` is drawn from three tokens, so a draft is right one time in three.
* `decoy` has every three tokens again and again, each time with another token behind, so every draft is wrong.
* `new` has no token twice, so there are no drafts.

Each is drawn by forks of one session, with and without drafts in turn. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import sala_export
from benchmarks.batches import add_model_options, model_of
from benchmarks.tables import duration, markdown
from sala_export.errors import RequestError, SalaError
from sala_export.machine import describe_machine
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.runtime.speculation import SpeculationCounts
from sala_export.specs import parse_tokens

_FIRST = 3
"""Tokens below it mean something to the model."""
_WARM_TOKENS = 8

Ids = NDArray[np.int32]


class Dictation:
    """A constraint that says every token of an answer."""

    def __init__(self, tokens: Ids) -> None:
        self.tokens = tokens
        self.taken = 0

    def allowed(self) -> NDArray[np.uint32]:
        token = int(self.tokens[self.taken])
        words = np.zeros(token // 32 + 1, np.uint32)
        words[token // 32] = 1 << token % 32
        return words

    def take(self, token_id: int) -> None:
        self.taken += 1


def copy(prompt: Ids, count: int) -> Ids:
    """The prompt, again and again."""
    return np.resize(prompt, count)


def guess(prompt: Ids, count: int) -> Ids:
    return np.random.default_rng(1).integers(_FIRST, _FIRST + 3, count, dtype=np.int32)


def decoy(prompt: Ids, count: int) -> Ids:
    """A text with any four tokens at most once, and three of them soon again: a de Bruijn sequence of order 4."""
    symbols = 2
    while symbols**4 < count:
        symbols += 1
    text, seen = [0, 0, 0], set[tuple[int, ...]]()
    while len(text) < count:
        windows = [(*text[-3:], symbol) for symbol in reversed(range(symbols))]
        fresh = next(window for window in windows if window not in seen)
        seen.add(fresh)
        text.append(fresh[-1])
    return np.array(text, np.int32) + np.int32(_FIRST)


def new(prompt: Ids, count: int) -> Ids:
    """Tokens that the prompt lacks, each at most once."""
    return np.random.default_rng(2).permutation(np.arange(_FIRST, _FIRST + count, dtype=np.int32))


TEXTS: dict[str, Callable[[Ids, int], Ids]] = {"copy": copy, "guess": guess, "decoy": decoy, "new": new}


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One text, drawn with and without drafts."""

    text: str
    plain_seconds: float
    """Median time of a token without drafts."""
    seconds: float
    """Median time of a token with drafts."""
    counts: SpeculationCounts

    @property
    def speed_up(self) -> float:
        return self.plain_seconds / self.seconds


@contextmanager
def chosen_model(options: argparse.Namespace) -> Iterator[Model]:
    """The model that the options ask for. Raises: SalaError."""
    if options.preset is not None or options.layers is not None:
        with model_of(options) as (model, _):
            yield model
        return
    # Here, not above: only this model needs a tokenizer and what the server's clients need.
    from benchmarks.serve_cost import bundle_of

    with tempfile.TemporaryDirectory() as folder:
        yield sala_export.load(bundle_of("medium", Path(folder)), runtime="onnxruntime", threads=options.threads)


def draw(session: Session, text: Ids, depth: int | None) -> tuple[float, SpeculationCounts]:
    """Seconds in which a fork draws the text, and what drafts did. Raises: SalaError."""
    fork = session.fork()
    answer = fork.generate_tokens(
        max_new_tokens=len(text), stop_tokens=[], constraint=Dictation(text), speculation=depth
    )
    start = time.perf_counter()
    drawn = list(answer)
    seconds = time.perf_counter() - start
    if drawn != text.tolist() or fork.speculation is None:
        raise RequestError(f"an answer of {len(text)} tokens is not what its constraint says: report this")
    return seconds, fork.speculation


def measure(model: Model, options: argparse.Namespace) -> list[Comparison]:
    """Compare the two ways, text by text. Raises: SalaError."""
    context, tokens = parse_tokens(options.context), options.tokens
    least = _FIRST + tokens + 1
    if model.vocab_size <= least + 1:
        raise RequestError(f"--tokens {tokens}: expected fewer than half of the vocabulary of {model.vocab_size}")
    # The prompt shares no token with `new`, so that nothing of that text was there before.
    prompt = np.random.default_rng(0).integers(least, model.vocab_size, context, dtype=np.int32)
    session = model.session(max_context=context + tokens + 2)
    session.prefill(prompt)
    found = []
    for name, text_of in TEXTS.items():
        text = text_of(prompt, tokens)
        taken: dict[int | None, list[float]] = {None: [], options.depth: []}
        for depth in taken:
            draw(session, text[:_WARM_TOKENS], depth)
        for _ in range(options.rounds):
            for depth, seconds in taken.items():
                took, counts = draw(session, text, depth)
                seconds.append(took / tokens)
        plain, ours = (statistics.median(each) for each in taken.values())
        found.append(Comparison(text=name, plain_seconds=plain, seconds=ours, counts=counts))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Exit code: 0, or that of the error that ended it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, context="500")
    parser.set_defaults(tokens=128)
    parser.add_argument("--depth", type=int, default=8, help="most tokens to draft for a step (default: 8)")
    options = parser.parse_args(arguments)
    try:
        with chosen_model(options) as model:
            found = measure(model, options)
    except SalaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    lengths = f"{options.tokens} tokens behind {options.context}"
    print(f"{describe_machine().processor}, {lengths}, --depth {options.depth}\n")
    header = (
        "text",
        "without, per token",
        "with, per token",
        "times as fast",
        "drafted",
        "accepted",
        "tokens per step",
    )
    lines = [
        (
            each.text,
            duration(each.plain_seconds),
            duration(each.seconds),
            f"{each.speed_up:.2f}",
            str(each.counts.drafted),
            str(each.counts.accepted),
            f"{each.counts.tokens_per_step:.2f}",
        )
        for each in found
    ]
    print(markdown(header, lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
