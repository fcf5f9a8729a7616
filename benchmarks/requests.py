"""What a scheduler gives many users of one model, beside serving them one after the other.

    python -m benchmarks.requests [--layers 2] [--context 1K] [--tokens 16] [--rounds 3] [--threads 2]
    python -m benchmarks.requests --preset 9b [--layers 2] [--device cuda] [--context 64K]

The models are those of `benchmarks.batches`. Eight requests have prompts of a 64th of the context, two 64ths and so on.
How long do all of them take? Then a prompt of the whole context is being read in sixteen chunks, and a short one comes.
How long until its first token? Both ways take turns, and the ratios are of medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.batches import add_model_options, model_of
from sala_export.errors import SalaError
from sala_export.machine import describe_machine
from sala_export.runtime.model import Model
from sala_export.runtime.session import Session
from sala_export.specs import parse_tokens

REQUESTS = 8
SHORT_PROMPT = 8


class Requests:
    """Prompts of different lengths, and the ways to answer them."""

    def __init__(self, model: Model, context: int, tokens: int) -> None:
        random = np.random.default_rng(0)
        self.model, self.context, self.tokens = model, context, tokens
        self.prompts = [self._ids(random, max(1, context * place // 64)) for place in range(1, REQUESTS + 1)]
        self.long, self.short = self._ids(random, context), self._ids(random, SHORT_PROMPT)

    def _ids(self, random: np.random.Generator, count: int) -> NDArray[np.int32]:
        return random.integers(3, self.model.vocab_size, count, dtype=np.int32)

    def _session(self) -> Session:
        return self.model.session(max_context=self.context + self.tokens, chunk_tokens=-(-self.context // 16))

    def one_after_the_other(self) -> float:
        """Seconds that all requests take."""
        start = time.perf_counter()
        for prompt in self.prompts:
            session = self._session()
            session.prefill(prompt)
            list(session.generate_tokens(max_new_tokens=self.tokens, stop_tokens=[]))
        return time.perf_counter() - start

    def side_by_side(self) -> float:
        """Seconds that all requests take."""
        start = time.perf_counter()
        with self.model.scheduler(max_running=REQUESTS) as scheduler:
            answers = [
                scheduler.submit_tokens(self._session(), prompt, max_new_tokens=self.tokens, stop_tokens=[])
                for prompt in self.prompts
            ]
            for answer in answers:
                list(answer)
        return time.perf_counter() - start

    def behind_a_long_prompt(self) -> float:
        """Seconds to the first token of the short prompt."""
        start = time.perf_counter()
        self._session().prefill(self.long)
        session = self._session()
        session.prefill(self.short)
        next(session.generate_tokens(max_new_tokens=1))
        return time.perf_counter() - start

    def beside_a_long_prompt(self) -> float:
        """Seconds to the first token of the short prompt."""
        with self.model.scheduler() as scheduler:
            start = time.perf_counter()
            scheduled = scheduler.submit_tokens(self._session(), self.long, max_new_tokens=0)
            next(scheduler.submit_tokens(self._session(), self.short, max_new_tokens=1, stop_tokens=[]))
            taken = time.perf_counter() - start
            list(scheduled)
        return taken


def medians(ways: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Median seconds of ways that take turns. The first turn, which sets up what the others use, is not counted."""
    seconds = [[way() for way in ways] for _ in range(rounds + 1)]
    return [statistics.median(each) for each in zip(*seconds[1:], strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Exit code: 0, or that of the error that ended it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser, context="1K")
    options = parser.parse_args(arguments)
    try:
        with model_of(options) as (model, _):
            requests = Requests(model, parse_tokens(options.context), options.tokens)
            one_by_one, together = medians((requests.one_after_the_other, requests.side_by_side), options.rounds)
            behind, beside = medians((requests.behind_a_long_prompt, requests.beside_a_long_prompt), options.rounds)
    except SalaError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    print(f"{describe_machine().processor}, {REQUESTS} requests one after the other: {one_by_one:.2f} s")
    print(f"side by side: {together:.2f} s, {one_by_one / together:.2f} times as fast")
    print(f"first token of a short prompt behind a long one: {behind:.2f} s")
    print(f"beside it: {beside:.2f} s, {behind / beside:.2f} times as fast")
    return 0


if __name__ == "__main__":
    sys.exit(main())
