"""Perplexity of a model on a text, by position in the context."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..progress import ProgressCallback
from ..runtime.text import Tokenizer
from ..specs import format_tokens

FIRST_BIN = 256
"""Positions in the first bin. Each further bin is as long as all before it together."""
_PIECE_TOKENS = 1 << 14
_LEAST_TOKENS = 16


class TokenScoresLike(Protocol):
    """Scores of tokens, as `Session.score` gives them."""

    @property
    def logprobs(self) -> NDArray[np.float64]:
        """Log-probability of each token, float64 [T]. NaN for the first of an empty context."""


class ScoringSession(Protocol):
    """A session as perplexity needs it. `Session` is one."""

    def score(self, prompt: NDArray[np.int32], *, context_length: int | None = None) -> TokenScoresLike: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Bin:
    """Tokens whose positions are from `first` to `last`, counted from 0."""

    first: int
    last: int
    tokens: int
    nll: float
    """Mean negative log-likelihood, in nats per token."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)

    def to_dict(self) -> dict[str, Any]:
        """The bin as plain JSON values."""
        return {**asdict(self), "perplexity": self.perplexity}


@dataclass(frozen=True, kw_only=True, slots=True)
class TextScore:
    """How well a model predicts a text in one context."""

    length: int
    tokens: int
    """Tokens that were predicted."""
    nll: float
    """Mean negative log-likelihood, in nats per token."""
    bits_per_byte: float
    bins: tuple[Bin, ...]
    seconds: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.nll)

    def to_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {**asdict(self), "perplexity": self.perplexity, "bins": [each.to_dict() for each in self.bins]}


class NllBins:
    """Sums of negative log-likelihoods by position, in bins of powers of two."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._counts = np.zeros(_bin_of(length - 1) + 1, np.int64)
        self._sums = np.zeros(len(self._counts))

    def add(self, first: int, logprobs: NDArray[np.float64]) -> None:
        """Add log-probabilities, float64 [T], of tokens from position `first` on. NaN is left out."""
        positions = np.arange(first, first + len(logprobs))
        known = ~np.isnan(logprobs)
        index = np.maximum(np.frexp(positions[known] / FIRST_BIN)[1], 0)
        np.add.at(self._counts, index, 1)
        np.add.at(self._sums, index, -logprobs[known])

    @property
    def tokens(self) -> int:
        return int(self._counts.sum())

    @property
    def nll(self) -> float:
        """Sum of all, in nats."""
        return float(self._sums.sum())

    def bins(self) -> tuple[Bin, ...]:
        """The bins that have tokens."""
        found = []
        for index, (count, total) in enumerate(zip(self._counts.tolist(), self._sums.tolist(), strict=True)):
            first = FIRST_BIN << (index - 1) if index else 0
            if count:
                last = min(FIRST_BIN << index, self._length) - 1
                found.append(Bin(first=first, last=last, tokens=count, nll=total / count))
        return tuple(found)


def _bin_of(position: int) -> int:
    return max(math.frexp(position / FIRST_BIN)[1], 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationText:
    """A text as tokens of the model."""

    ids: NDArray[np.int32]
    """int32 [T], with those that begin a context."""
    leading: int
    """Number of ids that begin a context and are no text."""

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, leading: list[int], name: str) -> EvaluationText:
        """Tokenise a text. Raises: RequestError naming the text if it has too few tokens to say anything."""
        ids = tokenizer.encode(text, add_special_tokens=False, literal=True)
        if len(ids) < _LEAST_TOKENS:
            raise RequestError(f"{name} has {len(ids)} tokens, expected at least {_LEAST_TOKENS}: give a longer text")
        return cls(ids=np.array([*leading, *ids], np.int32), leading=len(leading))

    def lengths(self, wanted: tuple[int, ...]) -> tuple[int, ...]:
        """The lengths that the text has. One that is longer becomes that of the whole text.

        Raises: RequestError for one of whose tokens none is predicted.
        """
        least = max(self.leading, 1) + 1
        if (length := min(wanted)) < least:
            raise RequestError(f"--lengths {length}: perplexity needs at least {least} tokens: choose a larger length")
        return tuple(sorted({min(length, len(self.ids)) for length in wanted}))

    def predicted_bytes(self, length: int, tokenizer: Tokenizer) -> int:
        """Bytes in UTF-8 of the tokens that are predicted in the first `length`."""
        text = self.ids[self.leading : length].tolist()
        whole = len(tokenizer.decode(text).encode())
        # Without a token before it the first token of the text is not predicted.
        return whole if self.leading else whole - len(tokenizer.decode(text[:1]).encode())


def score_text(
    session: ScoringSession,
    text: EvaluationText,
    length: int,
    tokenizer: Tokenizer,
    on_progress: ProgressCallback,
    *,
    piece_tokens: int = _PIECE_TOKENS,
) -> TextScore:
    """Score the first `length` tokens of a text as one context. Args: session: new, with room for them.

    Raises: RunError if a step fails.
    """
    start, sums = time.monotonic(), NllBins(length)
    for first in range(0, length, piece_tokens):
        piece = text.ids[first : min(first + piece_tokens, length)]
        sums.add(first, session.score(piece, context_length=length).logprobs)
        on_progress(f"scoring {format_tokens(length)}", first + len(piece), length)
    return TextScore(
        length=length,
        tokens=sums.tokens,
        nll=sums.nll / sums.tokens,
        bits_per_byte=sums.nll / math.log(2) / text.predicted_bytes(length, tokenizer),
        bins=sums.bins(),
        seconds=time.monotonic() - start,
    )
